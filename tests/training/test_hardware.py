"""The peak FLOP/s of devices, and the memory that a run uses."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import psutil
import pytest

from drsformer_jax.training.hardware import memory_mib, peak_flops

MIB = 2**20


def devices(*kinds: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(device_kind=kind) for kind in kinds]


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("TPU v2", 2, 46e12),  # Two devices are a chip.
        ("TPU v3", 2, 123e12),
        ("TPU v4", 1, 275e12),
        ("TPU v5 lite", 8, 8 * 197e12),
        ("TPU v5", 1, 459e12),
        ("TPU v6 lite", 1, 918e12),
        ("TPU7x", 2, 2307e12),
        ("NVIDIA A100-SXM4-80GB", 1, 312e12),
        ("NVIDIA H100 80GB HBM3", 8, 8 * 989.5e12),
        ("NVIDIA H100 PCIe", 1, 756.5e12),
        ("NVIDIA H200", 1, 989.5e12),
        ("NVIDIA B200", 1, 2250e12),
    ],
)
def test_peak_is_the_published_one_of_all_devices(kind, count, expected):
    assert peak_flops(devices(*[kind] * count)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("short", "long"),
    [("TPU v5e", "TPU v5 lite"), ("TPU v5p", "TPU v5"), ("TPU v6e", "TPU v6 lite")],
)
def test_both_names_of_a_chip_have_one_peak(short, long):
    assert peak_flops(devices(short)) == peak_flops(devices(long))


def test_peaks_of_different_devices_add_up():
    mixed = devices("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe")
    assert peak_flops(mixed) == pytest.approx(1746e12, rel=1e-12)


@pytest.mark.parametrize(
    "kind",
    ["cpu", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 NVL MIG 3g.47gb", "TPU v4 lite", ""],
)
def test_one_unknown_device_leaves_the_peak_unknown(kind):
    assert peak_flops(devices("TPU v4", kind)) is None


def test_cpus_have_no_known_peak():
    assert peak_flops(jax.devices("cpu")) is None


def test_memory_of_cpus_is_the_process_alone():
    figures = memory_mib()
    assert figures.keys() == {"host_memory_mib"}
    resident = psutil.Process().memory_info().rss / MIB
    assert figures["host_memory_mib"] == pytest.approx(resident, rel=0.1)


def test_memory_of_devices_is_that_of_the_fullest(monkeypatch):
    reported = [
        {"bytes_in_use": 3 * MIB, "peak_bytes_in_use": 9 * MIB, "bytes_limit": 99 * MIB},
        {"bytes_in_use": 5 * MIB, "peak_bytes_in_use": 7 * MIB, "bytes_limit": 99 * MIB},
        None,
    ]
    local = [SimpleNamespace(memory_stats=lambda stats=stats: stats) for stats in reported]
    monkeypatch.setattr(jax, "local_devices", lambda: local)
    figures = memory_mib()
    assert figures.pop("host_memory_mib") > 1
    assert figures == {"device_memory_mib": 5.0, "device_memory_peak_mib": 9.0}


def test_a_device_that_reports_no_peak_of_memory_leaves_it_out(monkeypatch):
    local = [SimpleNamespace(memory_stats=lambda: {"bytes_in_use": 3 * MIB})]
    monkeypatch.setattr(jax, "local_devices", lambda: local)
    assert memory_mib().keys() == {"host_memory_mib", "device_memory_mib"}
