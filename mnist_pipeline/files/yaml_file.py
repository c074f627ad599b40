"""YAML files that people write."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file. Raises OSError, or ValueError if it is none, or has a name twice."""
    import yaml  # half of the time of a command that reads none

    class Loader(yaml.SafeLoader):
        """The safe loader, but a name that stands twice is an error: one of the values would be lost without a word."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]
            if twice := sorted({str(name) for name in names if names.count(name) > 1}):
                raise ValueError(f"{twice[0]} stands twice in one place, line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(path.read_text(), Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def read_mapping(path: Path, form: str) -> dict[str, Any]:
    """Return the names and values of a YAML file.

    Raises ValueError with a sentence that begins with the path; `form` tells what the content has to look like.
    """
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} must have the form {form}")
    return content


MERGE = "tag:yaml.org,2002:merge"
"""The tag of `<<`, which may take in several mappings."""
