"""How values travel between assets: images as safetensors, records as JSON, in a folder or on s3://."""

import json
from typing import Any

import dagster as dg
from pydantic import Field
from upath import UPath

from mnist_pipeline.ml.records import Dataset, Record, Splits
from mnist_pipeline.ml.storage import storage_path, write_bytes


class _SafetensorsIOManager(dg.UPathIOManager):
    extension = ".safetensors"

    def dump_to_path(self, context: dg.OutputContext, obj: Dataset | Splits, path: UPath) -> None:
        from safetensors.numpy import save

        from mnist_pipeline.ml.data import to_arrays

        arrays, words = to_arrays(obj)
        data = save(arrays, words)
        context.add_output_metadata({"bytes_stored": len(data)})
        write_bytes(path, data)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Dataset | Splits:
        from safetensors.numpy import load

        from mnist_pipeline.ml.data import dataset_from_arrays, splits_from_arrays

        data = path.read_bytes()
        wanted = context.dagster_type.typing_type
        if wanted is Splits:
            return splits_from_arrays(load(data))
        if wanted is Dataset:
            # safetensors gives the words of a header only for files; the format: length (8 bytes), then JSON
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return dataset_from_arrays(load(data), header["__metadata__"])
        raise TypeError(f"{path} holds images; annotate the input as Dataset or Splits, not {wanted}")


class _RecordIOManager(dg.UPathIOManager):
    extension = ".json"

    def dump_to_path(self, context: dg.OutputContext, obj: Record, path: UPath) -> None:
        write_bytes(path, obj.model_dump_json(indent=2).encode())

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Record:
        wanted: Any = context.dagster_type.typing_type
        return wanted.model_validate_json(path.read_bytes())


class _StorageIOManager(dg.ConfigurableIOManagerFactory):
    base_path: str = Field(description="Folder, or s3://bucket/prefix.")
    endpoint_url: str | None = Field(None, description="For stores that speak S3 but are not Amazon's.")


class SafetensorsIOManager(_StorageIOManager):
    """Datasets and splits, one safetensors file an asset."""

    def create_io_manager(self, context: dg.InitResourceContext) -> dg.UPathIOManager:
        return _SafetensorsIOManager(storage_path(self.base_path, self.endpoint_url))


class RecordIOManager(_StorageIOManager):
    """Records, one JSON file an asset."""

    def create_io_manager(self, context: dg.InitResourceContext) -> dg.UPathIOManager:
        return _RecordIOManager(storage_path(self.base_path, self.endpoint_url))
