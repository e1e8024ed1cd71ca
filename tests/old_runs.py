"""Run directories as earlier commits wrote them, unpacked for a test to open, compare and resume."""

import json
import tarfile
from pathlib import Path

from stackllama_engine.contract.checkpoints import MANIFEST, digest

FIXTURES = Path(__file__).parent / "fixtures"
_FOLDER = b"@FOLDER@"
_BINARY = (".bin", ".pt", ".pth", ".safetensors", ".arrow")


def lay_out(folder: Path, name: str = "run-2a714a5") -> Path:
    """Unpack a fixture into an empty folder: its ``base/``, and its ``home/``, which is returned."""
    with tarfile.open(FIXTURES / name / "runs.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in _BINARY:
            text = path.read_bytes()
            if _FOLDER in text:
                path.write_bytes(text.replace(_FOLDER, str(folder).encode()))
    for manifest in folder.glob(f"home/runs/*/checkpoints/*/{MANIFEST}"):
        _seal_again(manifest)
    return folder / "home"


def _seal_again(manifest: Path) -> None:
    """Update sizes and hashes of files whose text now names the folder."""
    content = json.loads(manifest.read_text())
    for name in content["files"]:
        file = manifest.parent / name
        content["files"][name] = {"size": file.stat().st_size, "sha256": digest(file)}
    manifest.write_text(json.dumps(content))
