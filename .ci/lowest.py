"""Print the lowest versions of the dependencies that pyproject.toml allows, as pip wants them."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = {extra for extras in project["optional-dependencies"].values() for extra in extras}
for requirement in sorted({*project["dependencies"], *extras}):
    print(re.sub(r"\s*>=\s*", "==", requirement))
