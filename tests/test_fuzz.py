"""Random calls; a long campaign by `make test ARGS="--campaign 9999 tests/test_fuzz.py"`."""

import random

import pytest
from fuzz import Round

FAST, PARTS = 800, 8


@pytest.mark.parametrize("part", range(PARTS))
def test_random_calls(part, request):
    rounds = request.config.getoption("--campaign")
    first = 0
    if rounds is None:
        rounds = FAST
    else:
        first = request.config.getoption("--campaign-seed")
        first = random.SystemRandom().randrange(2**40) if first is None else first
        print(f"--campaign-seed {first}")
    for seed in range(first + part, first + rounds, PARTS):
        one = Round(seed)
        try:
            one.run()
        except BaseException as error:
            error.add_note(f"in round {seed}, calls {one.log}")
            raise
