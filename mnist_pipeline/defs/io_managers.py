"""The files between assets: images as safetensors, records as JSON, in a folder, in a bucket, or in memory."""

from typing import Any

import dagster as dg
from pydantic import Field
from upath import UPath

from mnist_pipeline.files.storage import is_in_memory, on_disk, read_bytes, replacing, storage_path, write_bytes
from mnist_pipeline.ml.records import Record, Splits
from mnist_pipeline.task.dataset import Dataset


class _SafetensorsIOManager(dg.UPathIOManager):
    extension = ".safetensors"

    def dump_to_path(self, context: dg.OutputContext, obj: Dataset | Splits, path: UPath) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import save, save_file

        from mnist_pipeline.ml.data import to_arrays

        arrays, texts = to_arrays(obj)
        if is_in_memory(path):
            data = save(arrays, texts)
            write_bytes(path, data)
            size = len(data)
        else:
            with replacing(path) as file:
                try:
                    save_file(arrays, file, texts)
                except SafetensorError as error:
                    raise OSError(f"{path} cannot be written: {error}") from error
                size = file.stat().st_size
        context.add_output_metadata({"bytes_stored": size})

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Dataset | Splits:
        from safetensors.numpy import load

        from mnist_pipeline.files.errors import DataError
        from mnist_pipeline.files.tensors import header_texts, mapped
        from mnist_pipeline.ml.data import dataset_from_arrays, splits_from_arrays

        if is_in_memory(path):
            data = read_bytes(path)
            arrays, texts = load(data), header_texts(data)
        else:
            with on_disk(path) as file:  # a copy is removed, and its content stays as long as the arrays
                arrays, texts = mapped(file, str(path))
        wanted = _wanted_type(context)
        try:
            if wanted is Splits:
                return splits_from_arrays(arrays, texts)
            if wanted is Dataset:
                return dataset_from_arrays(arrays, texts)
        except (KeyError, ValueError) as error:
            said = f"{path} is no {wanted.__name__} ({error}). Materialize the asset that it is of again"
            raise DataError(said) from error
        raise TypeError(f"{path} holds images; annotate the input as Dataset or Splits, not {wanted}")


class _RecordIOManager(dg.UPathIOManager):
    extension = ".json"

    def dump_to_path(self, context: dg.OutputContext, obj: Record, path: UPath) -> None:
        write_bytes(path, obj.model_dump_json(indent=2).encode())

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Record:
        return _wanted_type(context).model_validate_json(read_bytes(path))


def _wanted_type(context: dg.InputContext) -> Any:
    """The type that the input is annotated with; without an annotation the one that the asset gives."""
    wanted = context.dagster_type.typing_type
    if wanted is not Any:
        return wanted
    output = context.upstream_output
    assert output, "an input of an asset comes from an asset"
    return output.op_def.output_def_named(output.name).dagster_type.typing_type


class _StorageIOManager(dg.ConfigurableIOManagerFactory):
    base_path: str = Field(description="Folder, or address of a bucket.")
    endpoint_url: str | None = Field(None, description="For stores that speak S3 but are not Amazon's.")


class SafetensorsIOManager(_StorageIOManager):
    """Datasets and splits, one safetensors file an asset."""

    def create_io_manager(self, context: dg.InitResourceContext) -> dg.UPathIOManager:
        """Return the manager over the base path."""
        return _SafetensorsIOManager(storage_path(self.base_path, self.endpoint_url))


class RecordIOManager(_StorageIOManager):
    """Records, one JSON file an asset."""

    def create_io_manager(self, context: dg.InitResourceContext) -> dg.UPathIOManager:
        """Return the manager over the base path."""
        return _RecordIOManager(storage_path(self.base_path, self.endpoint_url))
