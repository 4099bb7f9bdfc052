"""Attacks on the reading of CSV files: whatever could be read in two ways is told or refused."""

import pandas as pd
import pytest

from fbp import datasets
from fbp.datasets import check
from tests.attacks.datafiles import built, csv_file, refusal

ROW = "{},{},a\n{},{},b\n"
FOUR = ROW.format(1, 2, 3, 4) + ROW.format(5, 6, 7, 8)


REFUSED = {
    "no header": ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "header: expected names of columns"),
    "no header, text first": ("setosa,5.1,3.5\nother,4.9,3.0\n", "set header = false"),
    "no header, one number": ("7,cat\n8,dog\n", "set header = false"),
    "no header, true and false": ("true,cat\nfalse,dog\n", "set header = false"),
    "no header, missing first": ("nan,cat\n8,dog\n", "set header = false"),
    "longer row": ("a,b,c\n1,2,x\n1,2,y,4\n", "got 4 in line 3"),
    "longer first row": ("a,b,c\n1,2,x,7\n1,2,y\n", "got 4 in line 2"),
    "all rows longer": ("a,b,c\n9,1,2,x\n9,3,4,y\n", "expected 3 cells in each row"),
    "shorter row": ("a,b,c\n1,2,x\n\n1,2\n", "got 2 in line 4"),
    "shorter after quoted lines": ('a,b,c\n1,2,"x\ny"\n1,2\n', "got 2 in line 4"),
    "trailing commas in rows only": ("a,b\n1,x,\n2,y,\n", "got 3 in line 2"),
    "two columns of a name": ("a,a,c\n1,2,x\n3,4,y\n", "different names of columns"),
    "unnamed column in the middle": ("a,,c\n1,2,x\n3,4,y\n", "a name for each column"),
    "text among numbers": ("a,b,c\n1,2,x\n1,two,y\n", "got text 'two' in column 'b', line 3"),
    "empty cell": ("a,b,c\n1,2,x\n1,,y\n", "got an empty cell in column 'b', line 3"),
    "NA in a feature": ("a,b,c\n1,NA,x\n1,2,y\n", "got text 'NA' in column 'b', line 2"),
    "infinity": ("a,b,c\n1,inf,x\n1,2,y\n", "got text 'inf' in column 'b', line 2"),
    "too large": ("a,b,c\n1,2,x\n1e400,2,y\n", "got text '1e400' in column 'a', line 3"),
    "too large for float32": ("a,b,c\n1,2,x\n1e39,2,y\n", "a number beyond 3.4e+38"),
    "beyond 2^53": ("a,c\n9007199254740993,x\n1,y\n", "9007199254740993 in column 'a', line 2"),
    "decimal commas": ('a,b,c\n"1,5",2,x\n2,3,y\n', "with a decimal point"),
    "semicolons": ("a;b;c\n1,5;2;x\n", "save it with commas, not ';'"),
    "tabs": ("a\tb\tc\n1\t2\tx\n", "save it with commas"),
    "true among numbers": ("a,c\ntrue,x\n1,y\n", "column 'a', line 3"),
    "grouped digits": ("a,c\n1_000,x\n1,y\n", "got text '1_000'"),
    "hexadecimal": ("a,c\n0x10,x\n1,y\n", "got text '0x10'"),
    "empty file": ("", "it is empty"),
    "blank lines only": ("\n\n\n", "it is empty"),
    "header only": ("a,b,c\n", "expected rows of examples"),
    "header without end of line": ("a,b,c", "expected rows of examples"),
    "one column": ("a\n1\n2\n", "at least two columns"),
    "one class": ("a,c\n1,x\n2,x\n", "at least two classes"),
    "empty target": ("a,c\n1,x\n2,\n", "empty cells in column 'c' (line 3)"),
    "blank target": ("a,c\n1,x\n2,  \n", "empty cells in column 'c' (line 3)"),
    "open quotation mark": ('a,c\n1,x\n2,"y\n3,z\n', "unexpected end of data"),
    "not UTF-8": (b"a,c\n1,x\n2,\xff\n", "expected UTF-8"),
    "UTF-16": ("a,c\n1,x\n2,y\n".encode("utf-16"), "expected UTF-8"),
    "one label in two spellings": ("a,c\n1,1\n2,1.0\n3,x\n", "one spelling of each label"),
    "a label with blanks": ("a,c\n1,x\n2, x\n3,y\n", "one spelling of each label"),
    "two encodings of a letter": ("a,c\n1,\u00e9\n2,e\u0301\n3,y\n", "one spelling of each label"),
    "dates": ("a,c\n2020-01-01,x\n2020-01-02,y\n", "got text '2020-01-01'"),
    "percent": ("a,c\n50%,x\n2%,y\n", "got text '50%'"),
    "a name with control letters": ("a\x1b[31m\n1\n", "at least two columns"),
    "numbers and NA as targets": ("a,c\n1,1.5\n2,NA\n", "got numbers and 'NA' (line 3)"),
}


@pytest.mark.promise("csv-one-reading")
@pytest.mark.parametrize("case", REFUSED)
def test_csv_that_cannot_be_used_is_refused_with_its_place(tmp_path, case):
    content, problem = REFUSED[case]
    path = csv_file(tmp_path, content)
    assert problem in refusal(lambda: check(datasets.file(path)))


READ = {
    "names over two lines": ('"a\nb",b,c\n' + FOUR, {}, [1, 3, 5, 7], ("a", "b")),
    "byte order mark and blank lines": ("\ufeff\n\na,b,c\n" + FOUR, {}, [1, 3, 5, 7], ("a", "b")),
    "blank lines without a header": ("\n\n" + FOUR, {"header": False}, [1, 3, 5, 7], ("a", "b")),
    "byte order mark": ("\ufeffa,b,c\n" + FOUR, {}, [1, 3, 5, 7], ("a", "b")),
    "blank lines": ("\n\na,b,c\n\n" + FOUR + "\n\n", {}, [1, 3, 5, 7], ("a", "b")),
    "Windows lines": ("a,b,c\r\n" + FOUR.replace("\n", "\r\n"), {}, [1, 3, 5, 7], ("a", "b")),
    "old Macintosh lines": ("a,b,c\r" + FOUR.replace("\n", "\r"), {}, [1, 3, 5, 7], ("a", "b")),
    "no header": (FOUR, {"header": False}, [1, 3, 5, 7], ("a", "b")),
    "numbers as names": ("0,1,2\n" + FOUR, {"header": True}, [1, 3, 5, 7], ("a", "b")),
    "quoted names": ('"a, b","b ""x""",c\n' + FOUR, {}, [1, 3, 5, 7], ("a", "b")),
    "quoted lines": ('a,b,c\n1,2,"x\ny"\n3,4,z\n', {}, [1, 3], ("x\ny", "z")),
    "spaces": ("a , b,c\n" + ROW.format(" 1", "2 ", "\t3", 4), {}, [1, 3], ("a", "b")),
    "unnamed index": (",a,b,c\n0,1,2,x\n1,3,4,y\n", {}, [1, 3], ("x", "y")),
    "unnamed index of texts": (",a,b,c\nr1,1,2,x\nr2,3,4,y\n", {}, [1, 3], ("x", "y")),
    "saved unnamed index": ("Unnamed: 0,a,b,c\n7,1,2,x\n3,3,4,y\n", {}, [1, 3], ("x", "y")),
    "trailing commas": ("a,b,c,\n1,2,x,\n3,4,y,\n", {}, [1, 3], ("x", "y")),
    "true and false": ("a,b,c\ntrue,1,x\nFALSE,0,y\n", {}, [1, 0], ("x", "y")),
    "names of missing values": (
        "a,b,c\n1,2,NA\n3,4,None\n5,6,null\n7,8,nan\n",
        {},
        [1, 3, 5, 7],
        ("NA", "None", "nan", "null"),
    ),
    "leading zeros": ("a,b,c\n1,2,0123\n3,4,123\n", {}, [1, 3], ("0123", "123")),
    "whole numbers in their order": ("a,b,c\n1,2,10\n3,4,9\n", {}, [1, 3], ("9", "10")),
    "target in front": ("c,a,b\nx,1,2\ny,3,4\n", {"target": "c"}, [1, 3], ("x", "y")),
    "no text is a formula": ("a,b,c\n1,2,=1+1\n3,4,@x\n", {}, [1, 3], ("=1+1", "@x")),
    "whole numbers up to 2^53": (
        "a,b,c\n9007199254740992,2,x\n0,4,y\n",
        {},
        [9007199254740992, 0],
        ("x", "y"),
    ),
}


@pytest.mark.promise("csv-as-written")
@pytest.mark.parametrize("case", READ)
def test_csv_is_read_as_it_is_written(tmp_path, case):
    content, arguments, first, classes = READ[case]
    data = check(datasets.file(csv_file(tmp_path, content), **arguments))
    assert data.train.x.shape[1] == 2
    assert data.train.x[:, 0].tolist() == first
    assert data.classes == classes


GUESSES = {
    "last column": ("a,b,c\n" + FOUR, "the target is 'c', the last column"),
    "index": (",a,c\n0,1,x\n1,3,y\n", "left out the first column, an index without a name"),
    "booleans": ("a,c\ntrue,x\nfalse,y\n", "true and false read as 1 and 0 in a"),
    "whole numbers": ("a,c\n1,5\n2,7\n", "whole numbers taken as classes"),
}


@pytest.mark.promise("guesses-told")
@pytest.mark.parametrize("case", GUESSES)
def test_what_is_guessed_is_told_in_one_line(tmp_path, case):
    content, note = GUESSES[case]
    data = check(datasets.file(csv_file(tmp_path, content)))
    assert any(each.startswith(note) for each in data.notes)


@pytest.mark.promise("guesses-told")
def test_a_run_prints_the_task_its_number_of_classes_and_every_guess(tmp_path):
    path = csv_file(tmp_path, ",a,c\n" + "".join(f"{i},{i / 7},{i % 3}\n" for i in range(40)))
    line, *_ = built({"name": "file", "path": path}).notes
    assert line == (
        "data 'd': a classification, 3 classes; left out the first column, an index without a "
        "name; the target is 'c', the last column"
    )


@pytest.mark.promise("guesses-told")
def test_the_index_that_pandas_stores_is_no_feature(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0], "c": ["x", "y"]}, index=pd.Index([7, 9], name="id"))
    frame.to_parquet(tmp_path / "d.parquet")
    data = datasets.file(str(tmp_path / "d.parquet"))
    assert data.train.x.tolist() == [[1.0], [2.0]]
    assert "left out the index, id" in data.notes
