"""What a run costs, and what the processor can."""

import pytest
import torch

from loralib.train import measure


@pytest.mark.parametrize(("capability", "emulated"), [("AVX2", True), ("AVX512", False), ("DEFAULT", False)])
def test_bfloat16_is_emulated_without_avx_512(capability: str, emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert measure.emulates_bf16() is emulated
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not measure.emulates_bf16()
