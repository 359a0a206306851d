# SPDX-License-Identifier: Apache-2.0
"""FinRL-style tables as they lie: the columns, days and tickers of a file or a frame.

In comes a CSV or Parquet file or a pandas frame, out come a `Table` of N rows in any
order and, for D days and M tickers of it, a `Grid`. What is missing is checked only
where it is asked for.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas

# What else a column is called, where it has not its own name.
ALIASES = {"date": ("datetime", "timestamp"), "tic": ("ticker", "symbol")}
# What stands for an empty cell in a CSV, but where tickers and dates stand.
EMPTY = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>")
# The offset from UTC at the end of a time; tables are read in their own time.
OFFSET = r"(:\d\d(?:\.\d+)?) *(?:Z|UTC|[+-]\d\d:?(?:\d\d)?)$"


class Table(NamedTuple):
    """N rows, of which any may be missing or there twice.

    Attributes:
      name: the file, or 'table'; errors begin with it.
      frame: the columns as they are, numbers or not.
      dates: N datetime64[D]; datetime64[s] where a ticker has several times a day.
      tickers: N text, '' where there is none.
    """

    name: str
    frame: "pandas.DataFrame"
    dates: np.ndarray
    tickers: np.ndarray

    def label(self, wanted: str, *default: None) -> str | None:
        """The column's label (see `column_of`), or the default where there is none."""
        return column_of(self.name, self.frame, wanted, *default)

    def without(self, drop: Collection[str]) -> np.ndarray:
        """N bool: the rows of the tickers that are not dropped; these must exist."""
        for ticker in sorted({*drop}.difference(self.tickers)):
            found = ", ".join(sorted({*self.tickers} - {""}))
            raise ValueError(
                f"{self.name}: no ticker {ticker!r} to drop, found {found}"
            )
        left_N = np.array([ticker not in drop for ticker in self.tickers], bool)
        if not left_N.any():
            raise ValueError(
                f"{self.name}: found no rows, expected one for each day and ticker"
            )
        return left_N

    def tickers_of(self, rows_N: np.ndarray) -> tuple[str, ...]:
        """The tickers of these rows (N bool), alphabetical; each row must have one."""
        tickers = sorted({*self.tickers[rows_N]})
        if "" in tickers:
            row = int(np.argmax(rows_N & (self.tickers == "")))
            label = self.label("tic")
            raise _cell_error(self.name, self.frame, label, row, "a ticker")
        return tuple(tickers)

    def grid(self, dates_D: np.ndarray, tickers: tuple[str, ...]) -> "Grid":
        """The rows by day (ascending) and ticker."""
        places = {ticker: place for place, ticker in enumerate(tickers)}
        ticker_N = np.array([places.get(ticker, -1) for ticker in self.tickers])
        day_N = np.searchsorted(dates_D, self.dates)
        there_N = (ticker_N >= 0) & (self.dates <= dates_D[-1])
        place = day_N[there_N], ticker_N[there_N]
        rows_DxM = np.full((len(dates_D), len(tickers)), -1)
        rows_DxM[place] = np.flatnonzero(there_N)
        counts_DxM = np.zeros_like(rows_DxM)
        np.add.at(counts_DxM, place, 1)
        rows_DxM[counts_DxM > 1] = -2
        return Grid(self, dates_D, tickers, rows_DxM)


class Grid(NamedTuple):
    """Where the row of each day and ticker stands.

    Attributes:
      rows: DxM int64, a row of the table, -1 where there is none, -2 where several.
    """

    table: Table
    dates: np.ndarray
    tickers: tuple[str, ...]
    rows: np.ndarray

    def numbers(self, label: str, empty: np.ndarray | float = np.nan) -> np.ndarray:
        """A column, DxM float64: NaN without a row or a number, `empty` for no cell."""
        import pandas

        column = self.table.frame[label]
        values_N = pandas.to_numeric(column, errors="coerce")
        values_N = values_N.to_numpy(np.float64, na_value=np.nan)
        values_DxM = np.where(self.rows >= 0, values_N[self.rows], np.nan)
        empty_DxM = (self.rows >= 0) & column.isna().to_numpy()[self.rows]
        return np.where(empty_DxM, empty, values_DxM)

    def check_rows(self, first: int) -> None:
        """Refuse days from row `first` on that have not one row for each ticker."""
        for wrong, found in ((-2, "more than one row"), (-1, "no row")):
            places = np.argwhere(self.rows[first:] == wrong)
            if len(places):
                day, ticker = places[0] + [first, 0]
                raise ValueError(
                    f"{self.table.name}: {self.tickers[ticker]} on {self.dates[day]}: "
                    f"found {found}, expected one"
                )

    def check_numbers(
        self, label: str, values_DxM: np.ndarray, first: int, above: float = -np.inf
    ) -> None:
        """Refuse numbers from row `first` on that are not finite, or not `above`."""
        fine_DxM = np.isfinite(values_DxM[first:]) & (values_DxM[first:] > above)
        if not fine_DxM.all():
            day, ticker = np.argwhere(~fine_DxM)[0] + [first, 0]
            found = self.table.frame[label].iloc[self.rows[day, ticker]]
            raise ValueError(
                f"{self.table.name}: column {label!r}, {self.tickers[ticker]} on "
                f"{self.dates[day]}: found {found}, expected a number"
                + (f" above {above:g}" if above > -np.inf else "")
            )


def read_table(table: "str | Path | pandas.DataFrame") -> Table:
    """A CSV (of `,`, `;` or tabs) or Parquet file, or a frame, with dates and tickers.

    Both may stand in the frame's index. A CSV with `;` may have decimal commas.

    Raises:
      FileNotFoundError, ValueError: in one line, which file, column and row.
    """
    if hasattr(table, "columns"):
        name, frame = "table", table
    elif isinstance(table, str | Path):
        name, frame = str(table), _read(Path(table).expanduser())
    else:
        raise ValueError(
            f"market={table!r}: expected a CSV or Parquet file, or a pandas frame"
        )
    inner = [level for level in frame.index.names if level not in (None, *frame)]
    if inner:
        frame = frame.reset_index(level=inner)
    read = Table(name, frame, _stamps(name, frame), _tickers(name, frame))
    return read._replace(dates=_days_or_seconds(read.dates, read.tickers))


def column_of(
    name: str, frame: "pandas.DataFrame", wanted: str, *default: None
) -> str | None:
    """The label of a column, by its name, that in other capitals, or a usual other one.

    Raises:
      ValueError: there is more than one, or none and no default.
    """
    for fits in (
        lambda label: label == wanted,
        lambda label: str(label).strip().lower() == wanted.lower(),
        lambda label: str(label).strip().lower() in ALIASES.get(wanted, ()),
    ):
        found = [label for label in frame.columns if fits(label)]
        if len(found) > 1:
            both = " and ".join(map(repr, found))
            raise ValueError(f"{name}: found {both}, expected one column {wanted!r}")
        if found:
            return found[0]
    if default:
        return default[0]
    found = ", ".join(map(str, frame.columns))
    raise ValueError(f"{name}: column {wanted!r} is missing, found {found}")


def _read(path):
    import pandas

    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, expected a CSV or Parquet table"
        )
    if path.suffix == ".parquet":
        return _parsed(path, pandas.read_parquet)
    headers = {
        mark: _parsed(path, pandas.read_csv, sep=mark, nrows=0) for mark in ",;\t"
    }
    separator = max(headers, key=lambda mark: headers[mark].shape[1])
    labels = [column_of(path, headers[separator], name) for name in ("date", "tic")]
    others = [label for label in headers[separator] if label not in labels]
    return _parsed(
        path,
        pandas.read_csv,
        sep=separator,
        decimal="," if separator == ";" else ".",
        dtype=dict.fromkeys(labels, str),
        keep_default_na=False,  # else a ticker NA is a missing one
        na_values=dict.fromkeys(others, EMPTY),
    )


def _parsed(path, read, **options):
    try:
        return read(path, **options)
    except Exception as error:  # pandas, gzip and Arrow each raise their own kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a CSV or Parquet table ({reason})") from error


def _stamps(name, frame):
    """N datetime64, in the table's own time, as exact as they are."""
    import pandas

    label = column_of(name, frame, "date")
    dates = frame[label]
    if not pandas.api.types.is_datetime64_any_dtype(dates):
        text = dates.astype(str).str.strip().str.replace(OFFSET, r"\1", regex=True)
        dates = pandas.to_datetime(text, format="ISO8601", errors="coerce")
    if dates.isna().any():
        row = int(np.argmax(dates.isna()))
        raise _cell_error(name, frame, label, row, "a day such as 2020-07-01")
    return dates.dt.tz_localize(None).to_numpy()


def _tickers(name, frame):
    """N text, whatever they are in the frame; 1.0, of a column with gaps, is 1."""
    import pandas

    column = frame[column_of(name, frame, "tic")]
    missing_N = column.isna().to_numpy()
    if pandas.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    tickers_N = column.astype(str).str.strip().to_numpy(object)
    return np.where(missing_N, "", tickers_N)


def _days_or_seconds(stamps_N, tickers_N):
    """Days, unless a ticker has more than one time on a day."""
    import pandas

    days_N = stamps_N.astype("datetime64[D]")
    rows = pandas.DataFrame({"day": days_N, "tic": tickers_N, "stamp": stamps_N})
    rows = rows[rows["tic"] != ""].drop_duplicates()
    several = rows.duplicated(["day", "tic"])
    return stamps_N.astype("datetime64[s]") if several.any() else days_N


def _cell_error(name, frame, label, row, expected):
    found = frame[label].iloc[row]
    return ValueError(
        f"{name}: column {label!r}, row {row}: found "
        f"{'nothing' if found == '' else found}, expected {expected}"
    )
