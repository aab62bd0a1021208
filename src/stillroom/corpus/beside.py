"""Columns of a Parquet file that are in no text: in which rows they have a value, with as little read of them as can be."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile


def always_filled(file: ParquetFile, group: int) -> set[str]:
    """Columns that have a value in every row of a row group by its statistics, so that they need not be read."""
    from pyarrow import types

    schema, found = file.schema_arrow, set()
    metadata = file.metadata.row_group(group)
    for index in range(metadata.num_columns):
        leaf = metadata.column(index)
        name = leaf.path_in_schema if leaf.path_in_schema in schema.names else leaf.path_in_schema.split(".")[0]
        statistics = leaf.statistics
        if schema.names.count(name) != 1:
            continue
        if file.schema.column(index).max_repetition_level:
            # Lists of numbers, such as embeddings, are most of a file: they are taken to be there.
            if leaf.physical_type != "BYTE_ARRAY":
                found.add(name)
            continue
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            continue
        kind = schema.field(name).type
        # A number, bytes, or one part of a struct is a value, whatever it is. A text may be empty: its least one tells.
        valued = leaf.physical_type != "BYTE_ARRAY" or types.is_struct(kind) or types.is_binary(kind)
        if valued or (statistics.has_min_max and statistics.min not in ("", b"")):
            found.add(name)
    return found


def filled(batch: pyarrow.RecordBatch, names: Collection[str]) -> list[list[str]]:
    """For each row of a batch, which of some columns have a value: none is null, an empty text or an empty list."""
    found: list[list[str]] = [[] for _ in range(batch.num_rows)]
    for name in names:
        for row, there in zip(found, _is_filled(batch.column(name)).to_pylist(), strict=True):
            if there:
                row.append(name)
    return found


def _is_filled(column: Any) -> Any:
    """Whether each value of a column is one, as an array of booleans."""
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if types.is_string(kind) or types.is_large_string(kind):
        return compute.greater(compute.fill_null(compute.binary_length(column), 0), 0)
    if types.is_list(kind) or types.is_large_list(kind):
        return compute.greater(compute.fill_null(compute.list_value_length(column), 0), 0)
    if types.is_struct(kind) and kind.num_fields:
        return functools.reduce(compute.or_, (part.is_valid() for part in column.flatten()))
    return column.is_valid()
