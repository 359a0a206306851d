# SPDX-License-Identifier: Apache-2.0
"""FinRL's eight technical indicators, by the formulas of stockstats.

In go prices, out come numbers for each row and stock; nothing of a later row is used.
D is rows (days, or what the table has), M stocks, I indicators.
"""

import numpy as np

# In FinRL's order: within a state, one indicator of all stocks follows another.
INDICATORS = (
    "macd",
    "boll_ub",
    "boll_lb",
    "rsi_30",
    "cci_30",
    "dx_30",
    "close_30_sma",
    "close_60_sma",
)
WARM_UP_DAYS = 60  # the longest window of an indicator


def compute_indicators(
    close_DxM: np.ndarray, high_DxM: np.ndarray, low_DxM: np.ndarray
) -> np.ndarray:
    """DxIxM float64: the eight `INDICATORS` by the formulas of stockstats 0.6.

    Windows are as long as the days before allow; a quotient that is not defined (no
    movement yet) is neutral: rsi 50, cci and dx 0. stockstats itself gives a cci of 0
    before day 30, and Bollinger bands that are not a number on day 1.
    """
    middle_DxM = _rolling(_mean, close_DxM, 20)
    band_DxM = 2.0 * _rolling(_std, close_DxM, 20)

    change_DxM = np.diff(close_DxM, axis=0, prepend=close_DxM[:1])
    gain_DxM = _smoothed(np.maximum(change_DxM, 0.0), 1 / 30)
    loss_DxM = _smoothed(np.maximum(-change_DxM, 0.0), 1 / 30)

    typical_DxM = (high_DxM + low_DxM + close_DxM) / 3.0
    excess_DxM = typical_DxM - _rolling(_mean, typical_DxM, 30)
    spread_DxM = 0.015 * _rolling(_mean_deviation, typical_DxM, 30)

    rise_DxM = np.diff(high_DxM, axis=0, prepend=high_DxM[:1])
    fall_DxM = -np.diff(low_DxM, axis=0, prepend=low_DxM[:1])
    up_DxM = _smoothed(np.maximum(rise_DxM, 0.0) * (rise_DxM > fall_DxM), 1 / 30)
    down_DxM = _smoothed(np.maximum(fall_DxM, 0.0) * (fall_DxM > rise_DxM), 1 / 30)

    indicators = {
        "macd": _smoothed(close_DxM, 2 / 13) - _smoothed(close_DxM, 2 / 27),
        "boll_ub": middle_DxM + band_DxM,
        "boll_lb": middle_DxM - band_DxM,
        "rsi_30": 100.0 * _quotient(gain_DxM, gain_DxM + loss_DxM, 0.5),
        "cci_30": _quotient(excess_DxM, spread_DxM, 0.0),
        "dx_30": 100.0 * _quotient(np.abs(up_DxM - down_DxM), up_DxM + down_DxM, 0.0),
        "close_30_sma": _rolling(_mean, close_DxM, 30),
        "close_60_sma": _rolling(_mean, close_DxM, 60),
    }
    return np.stack([indicators[name] for name in INDICATORS], axis=1)


def _rolling(statistic, values_DxM, days):
    return np.stack(
        [
            statistic(values_DxM[max(0, day + 1 - days) : day + 1])
            for day in range(len(values_DxM))
        ]
    )


def _mean(window_WxM):
    return window_WxM.mean(axis=0)


def _std(window_WxM):
    if len(window_WxM) == 1:
        return np.zeros_like(window_WxM[0])
    return window_WxM.std(axis=0, ddof=1)


def _mean_deviation(window_WxM):
    return np.abs(window_WxM - window_WxM.mean(axis=0)).mean(axis=0)


def _smoothed(values_DxM, weight):
    """The exponentially weighted mean over all days so far, weights summing to one."""
    means_DxM = np.empty_like(values_DxM)
    total, count = 0.0, 0.0
    for day, values in enumerate(values_DxM):
        total = values + (1.0 - weight) * total
        count = 1.0 + (1.0 - weight) * count
        means_DxM[day] = total / count
    return means_DxM


def _quotient(above, below, undefined):
    return np.divide(above, below, out=np.full_like(above, undefined), where=below != 0)
