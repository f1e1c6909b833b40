"""The choice of kernels under which the tests that stand on rounding run."""

from types import SimpleNamespace

import pytest

from tools import numerics


@pytest.mark.parametrize("name", [kernels for kernels, _, _ in numerics.COMBINATIONS])
def test_only_the_kernels_that_are_named_run(name, monkeypatch):
    found = []

    def run(command, env):
        found.append((env["OPENBLAS_CORETYPE"], command[-2:]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(numerics, "subprocess", SimpleNamespace(run=run))
    assert numerics.main(["--only", name, "-n", "2"]) == 0
    assert found == [(name, ["-n", "2"])]
    assert numerics.main(["-n", "2"]) == 0
    assert len(found) == 1 + len(numerics.COMBINATIONS)


def test_kernels_that_are_not_known_are_refused(capsys):
    with pytest.raises(SystemExit):
        numerics.main(["--only", "Haswel"])
    assert "Haswell" in capsys.readouterr().err
