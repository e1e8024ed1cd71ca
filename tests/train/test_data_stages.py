"""A stage through the real command on data in another schema, in several files."""

import gzip
import json
from pathlib import Path

import pytest

from stackllama_engine.contract.prompt_format import read_prompt_format
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage

from .toy import REWARD, run_stage

pytestmark = pytest.mark.slow

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}assistant: {% endif %}"


def test_a_reward_model_learns_from_pairs_of_conversations(shared_home: Home, base: Path, tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    for part in range(2):
        turns = [{"role": "user", "content": f"What is {part}?"}, {"role": "assistant", "content": "A number."}]
        rows = [
            {
                "good": [
                    *turns,
                    {"role": "user", "content": f"And {n}?"},
                    {"role": "assistant", "content": "One too."},
                ],
                "bad": [*turns, {"role": "user", "content": f"And {n}?"}, {"role": "assistant", "content": "No."}],
            }
            for n in range(8)
        ]
        asked = [*turns, {"role": "user", "content": "And 0?"}]
        rows.append(rows[0] | {"bad": [*asked, {"role": "assistant", "content": " "}]})
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / f"train-{part}.jsonl.gz").write_bytes(gzip.compress(lines))
    data = [value for value in REWARD if not value.startswith(("dataset_name", "max_steps", "save_steps"))]
    run = run_stage(
        shared_home,
        Stage.REWARD,
        *data,
        f"model_name_or_path={base}",
        f"dataset_name={tmp_path}/train-*.jsonl.gz",
        "dataset_columns={chosen: good, rejected: bad}",
        "dataset_train_split=all",
        "dataset_test_split=all",
        f"chat_template={tmp_path}/template.jinja",
        "max_steps=2",
        "save_steps=0",
        "per_device_train_batch_size=4",
    )
    prompt_format = read_prompt_format(run.adapter)
    assert prompt_format is not None and (prompt_format.kind, prompt_format.chat_template) == ("chat", TEMPLATE)
    events = (run.attempt_dir(1) / "events.jsonl").read_text()
    assert "read as pairs of messages" in events
    assert events.count("2 rows of all skipped: 2 × response_k is blank") == 1
