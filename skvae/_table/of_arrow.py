"""What only pyarrow does: Parquet and Arrow files, folders and data sets, part by part."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """Return files, or one folder of them, as a pyarrow data set."""
    with of_extra(f"Reading {what}"):
        from pyarrow import dataset

    some = next((p for p in paths[0].rglob("*") if p.suffix in FORMATS), paths[0])
    suffix = (some if paths[0].is_dir() else paths[0]).suffix
    if suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(
            f"{what} is no file or folder that can be read part by part: the names of such files "
            f"end in {known}. Read others yourself, for example with pd.read_csv(path, "
            "chunksize=100_000), and pass the iterator."
        )
    # As pandas.read_parquet has them: the columns of partitions are categories.
    parts = dataset.HivePartitioning.discover(infer_dictionary=True)
    files = str(paths[0]) if len(paths) == 1 else list(map(str, paths))
    return dataset.dataset(files, format=FORMATS[suffix], partitioning=parts)


def parts_of_dataset(data: Any, n_rows: int, schema: Any) -> Iterator[Any]:
    """Yield tables of at most so many rows, one read ahead: by default it would be many.

    ``data`` is a data set, or a fragment of one with this schema.
    """
    import pyarrow as pa
    from pyarrow import dataset

    options = None
    if getattr(getattr(data, "format", None), "default_extname", "") == "parquet":
        options = dataset.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
    known = {} if isinstance(data, dataset.Dataset) else {"schema": schema}
    batches = data.to_batches(
        **known,
        batch_size=n_rows,
        batch_readahead=1,
        fragment_readahead=1,
        fragment_scan_options=options,
        use_threads=False,
        memory_pool=pa.system_memory_pool(),  # Arrow's own keeps what it once had
    )
    for batch in batches:
        if batch.num_rows:
            yield pa.Table.from_batches([batch])


def groups_of_dataset(data: Any) -> list[tuple[Any, int]]:
    """Return the row groups of a data set, each as one, and its rows; else its files."""
    groups: list[tuple[Any, int]] = []
    for fragment in data.get_fragments():
        if not hasattr(fragment, "split_by_row_group"):
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
