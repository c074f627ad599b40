"""The files in presets/, as a mapping."""

from pathlib import Path
from typing import Any

import yaml

PRESETS = Path(__file__).parents[1] / "presets"


def preset_config(name: str) -> dict[str, dict[str, Any]]:
    """The configuration of each step in presets/<name>.yaml."""
    steps = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())["ops"]
    return {step: values["config"] for step, values in steps.items()}
