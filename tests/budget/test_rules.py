"""Published rules of thumb give the published numbers."""

from stackllama_engine.budget import rules


def test_rules_give_the_published_numbers() -> None:
    assert rules.full_bf16(7_000_000_000) == 70_000_000_000
    assert rules.int8_lora(1_000_000_000) == (1_200_000_000, 1_400_000_000)
    assert [rules.weight_bytes(10, name) for name in ("fp32", "bf16", "int8")] == [40, 20, 10]
    assert rules.adam_bytes(10) == 80


def test_every_rule_has_a_name_of_its_own() -> None:
    found = rules.rules_for(7_000_000_000)
    assert len({rule.name for rule in found}) == len(found) == 6
    assert all(rule.low <= rule.high for rule in found)
    assert found[-1].low == 8_400_000_000
    assert found[-1].high == 9_800_000_000
