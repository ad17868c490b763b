"""What only pyarrow does: Parquet and Arrow files, folders and data sets, part by part."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

BUFFER = 2**16  # bytes of a column that are read at once
FORMATS = {".parquet": "parquet", ".pq": "parquet", ".arrow": "ipc", ".feather": "ipc"}
FORMATS[".ipc"] = "ipc"


@contextmanager
def of_extra(what: str) -> Iterator[None]:
    """Say which extra brings pyarrow, where it is missing."""
    try:
        yield
    except ImportError:
        raise ImportError(
            f"{what} needs pyarrow, which is not installed. Use pip install 'skvae[parquet]'."
        ) from None


def dataset_of(paths: Sequence[Path], what: str) -> Any:
    """Return files, and those of folders, as a pyarrow data set of all their columns."""
    with of_extra(f"Reading {what}"):
        import pyarrow as pa
        from pyarrow import dataset

    files = [file for path in paths for file in _files_of(path)]
    formats = {FORMATS.get(file.suffix) for file in files}
    if formats in ({None}, set()):
        known = ", ".join(FORMATS)
        raise ValueError(
            f"{what} is no file or folder that can be read part by part: the names of such files "
            f"end in {known}. Read others yourself, for example with pd.read_csv(path, "
            "chunksize=100_000), and pass the iterator."
        )
    if len(formats) > 1:
        names = [next(f.name for f in files if FORMATS.get(f.suffix) == one) for one in formats]
        raise ValueError(
            f"{what} holds files of several formats: {', '.join(sorted(names))}. Pass those of one "
            "format, for example by a pattern: 'rows/*.parquet'."
        )

    def of_files(schema: Any = None) -> Any:
        return dataset.dataset(
            list(map(str, files)),
            schema,
            format=formats.copy().pop(),
            # As pandas.read_parquet has them: the columns of partitions are categories.
            partitioning=dataset.HivePartitioning.discover(infer_dictionary=True),
            partition_base_dir=str(paths[0]) if len(paths) == 1 and paths[0].is_dir() else None,
        )

    try:
        data = of_files()
        own = [fragment.physical_schema for fragment in data.get_fragments()]
        schema = pa.unify_schemas([data.schema, *own], promote_options="permissive")
        return data if schema.equals(data.schema) else of_files(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"The files of {what} must be whole, and each column must have a name of its own and "
            f"be of one type in all of them. Arrow says: {error}"
        ) from None


def _files_of(path: Path) -> list[Path]:
    """Return the files of a folder that are not hidden and of a known format; else the file."""
    if not path.is_dir():
        return [path]
    found = (one for one in path.rglob("*") if one.suffix in FORMATS and one.is_file())
    hidden = ("_", ".")
    return sorted(
        (f for f in found if not any(p.startswith(hidden) for p in f.relative_to(path).parts)),
        key=str,
    )


def parts_of_dataset(data: Any, n_rows: int, schema: Any) -> Iterator[Any]:
    """Yield tables of at most so many rows; those of small files and row groups are put together.

    ``data`` is a data set, or a fragment of one with this schema.
    """
    import pyarrow as pa

    held: list[Any] = []
    try:
        for batch in _batches(data, n_rows, schema):
            if held and sum(map(len, held)) + len(batch) > n_rows:
                yield pa.Table.from_batches(held)
                held = []
            if len(batch):
                held.append(batch)
        if held:
            yield pa.Table.from_batches(held)
    finally:
        del held
        pa.default_memory_pool().release_unused()  # else it keeps what it once had


def _batches(data: Any, n_rows: int, schema: Any) -> Iterator[Any]:
    """Yield at most so many rows at a time, one batch read ahead: by default it would be many."""
    from pyarrow import dataset

    is_set, files = isinstance(data, dataset.Dataset), []
    with suppress(ValueError):  # rows are filtered out, which only a scan of the data set does
        files = list(data.get_fragments()) if is_set else [data]
    plain = dataset.ParquetFileFormat()
    if files and all(_is_parquet(file) and file.format == plain for file in files):
        for file in files:
            try:
                yield from _batches_of_file(file, n_rows, schema)
            except Exception as error:
                error.add_note(f"This was raised while {file.path} was read.")
                raise
        return
    known = {} if is_set else {"schema": schema}
    yield from data.to_batches(
        **known, batch_size=n_rows, batch_readahead=1, fragment_readahead=1, use_threads=False
    )


def _is_parquet(fragment: Any) -> bool:
    return hasattr(fragment, "split_by_row_group")


def _batches_of_file(fragment: Any, n_rows: int, schema: Any) -> Iterator[Any]:
    """Yield the rows of a Parquet file, page by page.

    A scan would hold whole row groups, and read them all before it ends.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with fragment.open() as opened:
        file = ParquetFile(opened, metadata=fragment.metadata, buffer_size=BUFFER, pre_buffer=False)
        groups = [group.id for group in fragment.row_groups]
        batches = file.iter_batches(n_rows, groups, use_threads=False)
        if file.schema_arrow.equals(schema):
            yield from batches
            return
        own = file.schema_arrow.names
        # Columns of partitions, and those that only other files have, hold one value.
        others = [name for name in schema.names if name not in own]
        row = fragment.scanner(schema=schema, columns=others).head(1)
        for batch in batches:
            first = pa.array(np.zeros(len(batch), dtype=np.int64))
            columns = [
                batch.column(own.index(field.name)).cast(
                    field.type, safe=not pa.types.is_floating(field.type)
                )
                if field.name in own
                else row.column(field.name).combine_chunks().take(first)
                for field in schema
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def groups_of_dataset(data: Any) -> list[tuple[Any, int]]:
    """Return the row groups of a data set, each as one, and its rows; else its files."""
    groups: list[tuple[Any, int]] = []
    for fragment in data.get_fragments():
        if not _is_parquet(fragment):
            groups.append((fragment, fragment.count_rows()))
            continue
        for one in fragment.split_by_row_group():
            groups.append((one, sum(group.num_rows for group in one.row_groups)))
    return groups


def parts_of_table(table: Any, n_rows: int) -> Iterator[Any]:
    """Yield tables of at most so many rows."""
    for start in range(0, table.num_rows, n_rows):
        yield table.slice(start, n_rows)


def arrow_of(columns: dict[str, Any]) -> Any:
    """Return arrays by name as a table of Arrow's."""
    with of_extra("Writing Parquet files"):
        import pyarrow as pa

    return pa.table(columns)


def arrow_columns(frame: Any) -> dict[str, Any]:
    """Return the columns of a frame, of pandas or of polars, as Arrow has them."""
    with of_extra("Writing Parquet files"):
        import pyarrow as pa

    is_pandas = hasattr(frame, "iloc")
    table = pa.Table.from_pandas(frame, preserve_index=False) if is_pandas else frame.to_arrow()
    return dict(zip(map(str, frame.columns), table.columns, strict=True))


def write_parquet(tables: Sequence[Any], path: Path) -> None:
    """Write tables to a file that is there when it is whole, and not before."""
    import pyarrow as pa
    from pyarrow import parquet

    partial = path.with_name(f"{path.name}.partial")
    parquet.write_table(pa.concat_tables(tables, promote_options="permissive"), partial)
    partial.replace(path)


def join_parquet(parts: Sequence[Path], path: Path) -> None:
    """Write what several files hold to one, which is there when it is whole, and not before."""
    import pyarrow as pa
    from pyarrow import parquet

    schemas = [parquet.read_schema(part) for part in parts]
    schema = pa.unify_schemas(schemas, promote_options="permissive").remove_metadata()
    partial = path.with_name(f"{path.name}.partial")
    with parquet.ParquetWriter(partial, schema) as writer:
        for part in parts:
            file = parquet.ParquetFile(part)
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group).cast(schema))
    partial.replace(path)
