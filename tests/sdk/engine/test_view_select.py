"""`DenseView.select`: the chosen rows, with their snapshots, apart from the old view."""

import pytest
import torch

from stackloom.core.cache import Buffer, CacheSpec
from stackloom.core.errors import EngineError
from stackloom.engine.cache import DenseView

SPEC = CacheSpec(pages={"k": Buffer(shape=(2,))}, state={"s": Buffer(shape=(3,))})


def rows(*lengths):
    views = []
    for number, length in enumerate(lengths, start=1):
        view = DenseView(SPEC, 1, dtype=torch.float32, poison=True)
        view.append(length, k=torch.full((1, length, 2), float(number)))
        view.write(s=torch.full((1, 3), float(number)))
        views.append(view)
    return DenseView.merge(views)


def test_selected_rows_keep_tokens_state_and_snapshots_in_the_new_order():
    whole = rows(3, 5, 2)
    whole.append(1, k=torch.full((3, 1, 2), 9.0))
    whole.write(s=torch.zeros(3, 3))
    part = whole.select([2, 0])
    assert part.lengths_B.tolist() == [3, 4]
    assert part.state("s").tolist() == [[0.0] * 3] * 2
    assert part.rollback(1) == 0
    assert part.lengths_B.tolist() == [2, 3]
    assert part.state("s")[:, 0].tolist() == [3.0, 1.0]
    assert part.read("k")[0, :2].tolist() == [[3.0, 3.0]] * 2
    assert part.read("k")[1, :3].tolist() == [[1.0, 1.0]] * 3
    assert whole.lengths_B.tolist() == [4, 6, 3]


@pytest.mark.parametrize("chosen", [[3], [-1]])
def test_rows_that_are_not_there_are_refused(chosen):
    with pytest.raises(EngineError, match="rows"):
        rows(3, 5, 2).select(chosen)
