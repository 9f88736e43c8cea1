"""Do options of a cluster mean what they say, and is everything else refused with a reason?"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.engine.cluster_options import (
    VARIABLE,
    ClusterOptions,
    GpuGroup,
    is_loopback,
    lifetime,
    parse_options,
    read_options,
)


def read(tmp_path: Path, text: str) -> ClusterOptions:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    return read_options({VARIABLE: str(path)})


def test_without_a_file_the_defaults_hold() -> None:
    assert read_options({}) == ClusterOptions()
    assert not ClusterOptions().encrypted


def test_a_file(tmp_path: Path) -> None:
    options = read(
        tmp_path,
        """
        [cluster]
        n_workers = 8
        cores = 4
        memory = "16 GB"
        walltime = "1-04:00:00"
        tls = true
        prologue = ["module load python"]

        [cluster.gpu]
        n_workers = 2
        queue = "gpu"
        """,
    )
    assert options == ClusterOptions(
        n_workers=8,
        cores=4,
        memory="16 GB",
        walltime="1-04:00:00",
        tls=True,
        prologue=("module load python",),
        gpu=GpuGroup(n_workers=2, queue="gpu"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cluster", r"cluster\.toml is no TOML file"),
        ("[custer]\ncores = 1", r"table \[cluster\].*custer"),
        ("[cluster]\nwaltime = '1:00:00'", "'waltime'.*did you mean walltime"),
        ("[cluster]\nzzz = 1", "'zzz'.*known are n_workers"),
        ("[cluster.gpu]\nn_worker = 1", r"\[cluster.gpu\].*n_workers"),
        ("[cluster]\ngpu = 1", r"table \[cluster.gpu\].*1"),
        ("[cluster]\ncores = '4'", "cores is a whole number.*'4'"),
        ("[cluster]\ncores = true", "cores is a whole number.*True"),
        ("[cluster]\ntls = 1", "tls is true or false.*1"),
        ("[cluster]\nqueue = 7", "queue is a text.*7"),
        ("[cluster]\nprologue = 'x'", "prologue is a list of texts.*'x'"),
        ("[cluster]\nprologue = [1]", "prologue is a list of texts"),
        ("[cluster]\nmaximum = '4'", "maximum is a whole number"),
        ("[cluster]\ncores = 0", "cores is at least 1.*0"),
        ("[cluster.gpu]\ncores = 0", "cluster.gpu.cores is at least 1"),
        ("[cluster]\nmemory = 'much'", "memory is a size.*'much'"),
        ("[cluster]\nmemory = '16'", "memory is a size.*'16'"),
        ("[cluster]\nwalltime = '4h'", "HH:MM:SS.*'4h'"),
        ("[cluster]\nwalltime = '00:01:00'", "at least 5 minutes"),
        ("[cluster]\nminimum = 2", "given both.*maximum None"),
        ("[cluster]\nminimum = 3\nmaximum = 2", "minimum 3, maximum 2"),
        ("[cluster]\nminimum = 1\nmaximum = 2\n[cluster.gpu]", "fixed numbers"),
        ("[cluster]\ntls_cert = 'c.pem'", "all three"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"CVDASK_CLUSTER.*absent\.toml"):
        read_options({VARIABLE: str(tmp_path / "absent.toml")})


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.3", "::", "node7"])
def test_beyond_loopback_is_encrypted(host: str) -> None:
    assert not is_loopback(host)
    assert ClusterOptions(host=host).encrypted


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_encrypted_when_asked_for(host: str) -> None:
    assert is_loopback(host)
    assert not ClusterOptions(host=host).encrypted
    assert ClusterOptions(host=host, tls=True).encrypted


@given(st.integers(300, 30 * 86400))
def test_the_last_worker_closes_before_the_walltime(granted: int) -> None:
    minutes, seconds = divmod(granted, 60)
    hours, minutes = divmod(minutes, 60)
    closes, varies = lifetime(f"{hours}:{minutes:02d}:{seconds:02d}")
    assert closes - varies > 0
    assert granted - (closes + varies) >= granted // 25
    days, hours = divmod(hours, 24)
    assert lifetime(f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}") == (closes, varies)


def test_keys_of_both_tables_are_known() -> None:
    options = parse_options({"cores": 2, "gpu": {"cores": 3}})
    assert options.gpu is not None
    assert (options.cores, options.gpu.cores) == (2, 3)
