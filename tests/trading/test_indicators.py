# SPDX-License-Identifier: Apache-2.0
"""Indicators are stockstats'."""

import numpy as np
from test_environment import GOLDEN

from dt_jax.trading.indicators import INDICATORS, compute_indicators


def test_indicators_equal_stockstats():
    golden = GOLDEN["stockstats"]
    prices = [np.array(golden[name]) for name in ("close", "high", "low")]
    ours_DxIxM = compute_indicators(*prices)
    expected_DxIxM = np.array(golden["indicators"], np.float64).transpose(2, 1, 0)
    assert np.isfinite(ours_DxIxM).all()
    for place, name in enumerate(INDICATORS):
        first = {"cci_30": 29, "boll_ub": 1, "boll_lb": 1}.get(name, 0)
        np.testing.assert_allclose(
            ours_DxIxM[first:, place],
            expected_DxIxM[first:, place],
            rtol=1e-9,
            atol=1e-9,
            err_msg=name,
        )


def test_indicators_of_a_price_that_never_moves():
    still_DxM = np.full((40, 1), 8.0)
    expected = [0.0, 8.0, 8.0, 50.0, 0.0, 0.0, 8.0, 8.0]
    values_DxIxM = compute_indicators(still_DxM, still_DxM, still_DxM)
    np.testing.assert_allclose(
        values_DxIxM[:, :, 0], np.tile(expected, (40, 1)), atol=1e-12
    )
