"""Print the lowest versions of the dependencies that pyproject.toml allows, as pip wants them."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["trio"]:
    print(re.sub(r"\s*>=\s*", "==", requirement))
