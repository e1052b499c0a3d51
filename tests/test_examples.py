import numpy as np
import pytest

from medjax.evaluation import results
from medjax.evaluation.predict import Predictions


def films(n=60):
    rng = np.random.default_rng(0)
    score = rng.random((n, 3)).astype(np.float32).round(2)
    label = (rng.random((n, 3)) < 0.4).astype(np.float32)
    weight = (rng.random((n, 3)) < 0.9).astype(np.float32)
    return Predictions(rng.permutation(n), np.arange(n), score, label, weight)


@pytest.mark.parametrize("each", [0, 1, 2, 3, 100])
def test_the_surest_and_least_sure_of_each_kind_are_taken(each):
    found = films()
    chosen = results.choose(found, [0.5, 0.1, np.nan], each=each)
    assert {one.task for one in chosen} <= {0, 1}
    for t, point in ((0, 0.5), (1, 0.1)):
        for kind in results.KINDS:
            right, positive = kind.startswith("true"), kind.endswith("positive")
            rows = [
                (-abs(float(found.probability[n, t]) - point), found.id[n], n)
                for n in range(60)
                if found.weight[n, t]
                and (found.probability[n, t] >= np.float32(point)) == positive
                and (found.label[n, t] == positive) == right
            ]
            ranked = [n for *_, n in sorted(rows)]
            own = [one for one in chosen if (one.task, one.kind) == (t, kind)]
            assert len({one.row for one in own}) == len(own) == min(each, len(rows))
            most = [one.row for one in own if one.certain == "most"]
            least = [one.row for one in own if one.certain == "least"]
            assert most == ranked[: -(-each // 2)]
            assert least == ranked[::-1][: len(least)]
            assert len(least) == min(each // 2, len(rows) - len(most))
