"""The JSON schema of dataset.json, made from the model: ``python -m proposals.dataset.schema > schema.json``."""

import json
from typing import Any

from proposals.dataset.manifest import Manifest

# Fields that are left out where there is nothing to say, by model.
_ABSENT = {"Manifest": {"images"}, "SourceInfo": {"column"}}


def manifest_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of dataset.json, format version 1. Sums and file names are beyond it."""
    schema = Manifest.model_json_schema()
    properties = schema["properties"]
    properties["format_version"] = {"type": "string", "pattern": "^1\\.[0-9]{1,9}$"}
    properties["digest"] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    properties["plan"] = _named(properties["plan"], "plan.parquet")
    properties["rejected"] = _named(properties["rejected"], "rejected.parquet")
    for name, model in schema["$defs"].items():
        model["required"] = sorted(set(model["properties"]) - _ABSENT.get(name, set()))
        model.pop("description", None)  # docs/format.md says it better than docstrings written for Python
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **{name: value for name, value in schema.items() if name != "description"},
        "title": "dataset.json of an AlignDet proposal dataset, format version 1",
        "required": sorted(set(properties) - _ABSENT["Manifest"]),
    }


def _named(entry: dict[str, Any], path: str) -> dict[str, Any]:
    return {"allOf": [entry, {"properties": {"path": {"const": path}}}]}


if __name__ == "__main__":
    print(json.dumps(manifest_schema(), indent=1))
