"""Print the lowest versions of the dependencies that pyproject.toml allows, as pip wants them."""

import re
import tomllib
from pathlib import Path

settings = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
project = settings["project"]
extras = {extra for extras in project["optional-dependencies"].values() for extra in extras}
# What the tests use of OpenTelemetry has to be of the same version.
tools = {
    tool for tool in settings["dependency-groups"]["test"] if tool.startswith("opentelemetry-")
}
for requirement in sorted({*project["dependencies"], *extras, *tools}):
    print(re.sub(r"\s*>=\s*", "==", requirement))
