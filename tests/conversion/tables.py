"""The images of a class folder in other layouts, with the same labels and fields, as people have them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """One dict per image: path, class name, and fields."""
    files = sorted(folder.rglob("*.jpg"))
    return [
        {"path": file, "label": file.parent.name, "caption": f"größe, {i}\n", "id": i - 3, "score": i / 7}
        for i, file in enumerate(files)
    ]


def csv_manifest(folder: Path, path: Path) -> str:
    with Path(f"{path}.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows_of(folder)[0])
        writer.writeheader()
        writer.writerows(rows_of(folder))
    return f"{path}.csv"


def tsv_manifest(folder: Path, path: Path) -> str:
    """Without a header: paths and labels alone."""
    Path(f"{path}.tsv").write_text("".join(f"{row['path']}\t{row['label']}\n" for row in rows_of(folder)))
    return f"{path}.tsv"


def jsonl_manifests(folder: Path, path: Path) -> str:
    """Two files, with numbers for labels and the class names beside."""
    classes = sorted(one.name for one in folder.iterdir())
    lines = [
        json.dumps({**row, "path": str(row["path"]), "label": classes.index(row["label"])}) for row in rows_of(folder)
    ]
    path.mkdir()
    for number in range(2):
        (path / f"part-{number}.jsonl").write_text("\n\n".join(lines[9 * number :][:9]))
    (path / "classes.json").write_text(json.dumps(classes))
    return f"{path}/part-*.jsonl"


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def tar_shards(folder: Path, path: Path) -> str:
    path.mkdir()
    classes = sorted(one.name for one in folder.iterdir())
    (path / "classes.json").write_text(json.dumps(classes))
    rows = rows_of(folder)
    for shard in range(3):
        members: list[tuple[str, bytes]] = []
        for row in rows[7 * shard :][:7]:
            key = f"./{row['label']}/{row['path'].stem}"
            fields = {"id": row["id"], "score": row["score"]}
            members += [
                (f"{key}.JPG", row["path"].read_bytes()),
                (f"{key}.cls", str(classes.index(row["label"])).encode()),
            ]
            members += [(f"{key}.json", json.dumps(fields).encode()), (f"{key}.txt", row["caption"].encode())]
        write_tar(path / f"train-{shard:03d}.tar", members)
    return f"{path}/train-{{000..002}}.tar"


def class_archives(folder: Path, path: Path) -> str:
    """One tar per class, as those in the tar of ImageNet's training set, whose images have the class in their names."""
    path.mkdir()
    for one in folder.iterdir():
        files = ((f"{one.name}_{file.stem}.JPEG", file.read_bytes()) for file in sorted(one.iterdir()))
        write_tar(path / f"{one.name}.tar", files)
    return str(path)


def flat_shard(folder: Path, path: Path) -> str:
    """One tar, the label's name in the JSON."""
    members: list[tuple[str, bytes]] = []
    for number, row in enumerate(rows_of(folder)):
        others = {name: value for name, value in row.items() if name != "path"}
        members += [
            (f"{number:03d}.json", json.dumps(others).encode()),
            (f"{number:03d}.jpeg", row["path"].read_bytes()),
        ]
    return str(write_tar(Path(f"{path}.tar"), members))


def hub_table(folder: Path) -> pa.Table:
    """As the Hub has it: structs of bytes and path, class numbers, and their names in the schema."""
    classes, rows = sorted(one.name for one in folder.iterdir()), rows_of(folder)
    images = [{"bytes": row["path"].read_bytes(), "path": f"{row['label']}/{row['path'].name}"} for row in rows]
    columns = {
        "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "label": pa.array([classes.index(row["label"]) for row in rows], pa.int64()),
        **{name: [row[name] for row in rows] for name in ("caption", "id", "score")},
    }
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def hub_parquet(folder: Path, path: Path) -> str:
    path.mkdir()
    table = hub_table(folder)
    for number in range(2):
        pa.parquet.write_table(table.slice(10 * number, 10), path / f"train-{number}.parquet", row_group_size=4)
    return str(path)


def plain_parquet(folder: Path, path: Path) -> str:
    """Bytes and names, in one row group of many pages."""
    table = hub_table(folder)
    columns = {
        "jpg": [row["bytes"] for row in table["image"].to_pylist()],
        "cls": [row["label"] for row in rows_of(folder)],
    }
    others: dict[str, Sequence[Any]] = {name: table[name] for name in ("caption", "id", "score")}
    pa.parquet.write_table(pa.table({**columns, **others}), f"{path}.parquet", data_page_size=1 << 12)
    return f"{path}.parquet"
