"""How tables are laid out: separators, headers, decimal commas, row names."""

import numpy as np
import pytest

from pnet_jax.errors import InputError
from pnet_jax.ingest.tables import layout_of, numbers_of, read_table, text_columns

VALUES = np.round(np.random.default_rng(0).normal(size=(30, 3)), 4)
NAMES = ["left", "right", "top"]


def written(path, separator, *, names=NAMES, decimal=".", values=VALUES, end=""):
    rows = [separator.join(f"{v:.4f}".replace(".", decimal) for v in row) + end for row in values]
    path.write_text("\n".join(([separator.join(names)] if names else []) + rows) + "\n")
    return path


@pytest.mark.parametrize("extension", ["tsv", "csv", "txt", "1D"])
@pytest.mark.parametrize("separator", ["\t", ",", ";", " ", "   "])
@pytest.mark.parametrize("names", [NAMES, None])
def test_another_separator_than_the_extension_says(tmp_path, extension, separator, names):
    table = read_table(written(tmp_path / f"t.{extension}", separator, names=names))
    assert list(table.columns) == (names or ["column-1", "column-2", "column-3"])
    np.testing.assert_array_equal(table.to_numpy(), VALUES)


@pytest.mark.parametrize("extension", ["tsv", "csv", "txt"])
@pytest.mark.parametrize("separator", ["\t", ";", " "])
@pytest.mark.parametrize("names", [NAMES, None])
def test_decimal_commas_are_refused_and_their_columns_named(tmp_path, extension, separator, names):
    """A German spreadsheet's table: not one of its digits may be taken for a number of its own."""
    path = written(tmp_path / f"t.{extension}", separator, names=names, decimal=",")
    with pytest.raises(InputError, match=rf"t\.{extension}: decimal commas .* in {'left' if names else 'column-1'}, .*decimal points"):
        numbers_of(read_table(path), str(path))


def test_decimal_commas_between_commas(tmp_path):
    path = written(tmp_path / "t.csv", ",", decimal=",")
    with pytest.raises(InputError, match=r"t\.csv: the first line has 3 fields and the rows have 6.*decimal commas"):
        read_table(path)


def test_a_single_column(tmp_path):
    for name in ("t.tsv", "t.csv", "t.txt"):
        path = written(tmp_path / name, "?", names=["m"], values=VALUES[:, :1])
        np.testing.assert_array_equal(read_table(path).to_numpy(), VALUES[:, :1])
    for name in ("t.tsv", "t.txt"):
        for names in (["m"], None):
            path = written(tmp_path / name, "?", names=names, values=VALUES[:, :1], decimal=",")
            with pytest.raises(InputError, match="decimal commas"):
                numbers_of(read_table(path), str(path))


def test_texts_do_not_change_the_separator(tmp_path):
    (tmp_path / "t.csv").write_text("name\nLeft Hippocampus\nRight Hippocampus\n")
    assert read_table(tmp_path / "t.csv").to_numpy().tolist() == [["Left Hippocampus"], ["Right Hippocampus"]]
    (tmp_path / "t.tsv").write_text("index\tname\n1\tarea 44,45; left\n2\tarea 6,8; left\n")
    assert read_table(tmp_path / "t.tsv").columns.tolist() == ["index", "name"]
    (tmp_path / "t.csv").write_text('index,name\n1,"area 44, 45"\n2,"area 6"\n')
    assert read_table(tmp_path / "t.csv")["name"].tolist() == ["area 44, 45", "area 6"]
    (tmp_path / "l.tsv").write_text("bold,mask\na.nii.gz,m.nii.gz\n")
    assert layout_of(tmp_path / "l.tsv", "x").fields == ("bold", "mask")


def test_comments_and_the_header_of_afni(tmp_path):
    """`#2001\t#2002` is how the ROI tables of the ABIDE preprocessing name their regions."""
    body = "\n".join("\t".join(map(str, row)) for row in VALUES)
    (tmp_path / "a.1D").write_text(f"#2001\t#2002\t#2101\n{body}\n")
    (tmp_path / "b.1D").write_text(f"# made by 3dROIstats\n# left right top\n{body}\n# the end\n")
    (tmp_path / "c.1D").write_text(f"# made by 3dROIstats -quiet\n\n{body}\n")
    for name, columns in [("a", ["2001", "2002", "2101"]), ("b", NAMES), ("c", ["column-1", "column-2", "column-3"])]:
        table = read_table(tmp_path / f"{name}.1D")
        assert table.columns.tolist() == columns
        np.testing.assert_array_equal(table.to_numpy(), VALUES)


def test_row_names_of_r_are_no_column_and_shifted_rows_are_refused(tmp_path):
    for labels in (range(1, 31), [f'"frame {i}"' for i in range(30)]):
        rows = "\n".join("\t".join([str(label), *map(str, row)]) for label, row in zip(labels, VALUES, strict=True))
        (tmp_path / "r.tsv").write_text("\t".join(NAMES) + f"\n{rows}\n")
        np.testing.assert_array_equal(read_table(tmp_path / "r.tsv").to_numpy(), VALUES)
    path = written(tmp_path / "end.tsv", "\t", end="\t")
    with pytest.raises(InputError, match=r"the first line has 3 fields and the rows have 4.*ends of lines"):
        read_table(path)


def test_the_byte_order_mark_and_line_ends_of_windows(tmp_path):
    for name in ("t.csv", "t.txt"):
        path = written(tmp_path / name, ",")
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        table = read_table(path)
        assert table.columns.tolist() == NAMES and not text_columns(table)


def test_text_is_named_with_its_row(tmp_path):
    path = written(tmp_path / "t.csv", ",")
    path.write_text(path.read_text().replace(f"{VALUES[6, 1]:.4f}", "#REF!", 1))
    with pytest.raises(InputError, match=r"found text in right \('#REF!' in row 7\)"):
        numbers_of(read_table(path), str(path))
