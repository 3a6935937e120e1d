"""Lists of candidates, as LUNA16 publishes them and as spreadsheets save them; rows that contradict each other."""

import pytest

from squeeze_jax.data.candidates import read_candidates, rename_classes, summary
from squeeze_jax.errors import DataError

HEADER = "seriesuid,coordX,coordY,coordZ,class"
GOOD = f"{HEADER}\n1.2.3,1.5,2.5,-3.5,1\n1.2.4,4,5,6,0\n"
EXPECTED = [("1.2.3", (1.5, 2.5, -3.5), "1"), ("1.2.4", (4.0, 5.0, 6.0), "0")]


def read(tmp_path, data):
    path = tmp_path / "list.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_candidates(path)


@pytest.mark.parametrize(
    "data",
    {
        "plain": GOOD,
        "saved by Excel": GOOD.encode("utf-8-sig"),
        "UTF-16": GOOD.encode("utf-16"),
        "semicolons": GOOD.replace(",", ";"),
        "decimal commas": GOOD.replace(",", ";").replace("1.5", "1,5").replace("2.5;-3.5", "2,5;-3,5"),
        "tabs": GOOD.replace(",", "\t"),
        "blanks": GOOD.replace(",", " , "),
        "another case": GOOD.replace("seriesuid", "SeriesUID").replace("coord", "COORD").replace("class", "Class"),
        "index": GOOD.replace("seriesuid", ",seriesuid").replace("\n1.", "\n0,1."),
        "quotes": GOOD.replace("1.2.3", '"1.2.3"').replace("class", '"class"'),
        "old Macintosh": GOOD.replace("\n", "\r"),
        "Windows": GOOD.replace("\n", "\r\n"),
        "empty rows": GOOD.replace("\n", "\n\n") + ",,,,\n\n",
        "trailing commas": GOOD.replace("\n", ",,\n"),
    }.items(),
    ids=lambda item: item[0],
)
def test_lists_as_spreadsheets_save_them(data, tmp_path):
    found = read(tmp_path, data[1])
    assert [(one.scan, one.center, one.class_name) for one in found] == EXPECTED
    assert [one.patient for one in found] == ["1.2.3", "1.2.4"] and found[0].case != found[1].case


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD.replace("class", "label"), r"has no column class; .* found 'seriesuid', .*'label'"),
        ("", r"has no column seriesuid, .*, found nothing"),
        (HEADER, "lists no candidates"),
        (GOOD.replace(HEADER, HEADER + ",Class"), "has the column class twice"),
        (GOOD.encode("utf-16")[2:], "cannot be read|is not a text|no column"),
        (GOOD.replace("1.2.4", "Müller").encode("latin-1"), "is not a text in UTF-8"),
        (GOOD.replace("-3.5", "-3,5"), "line 2: more cells than columns"),
        (GOOD.replace(",", "\t").replace("-3.5", "-3,5"), "line 2: expected a seriesuid, three coordinates in mm"),
        (GOOD.replace("-3.5", "nan"), "line 2: expected a seriesuid, three coordinates in mm"),
        (GOOD.replace("-3.5", "1_0"), "line 2: expected a seriesuid, three coordinates in mm"),
        (GOOD.replace("6,0", "6"), "line 3: expected a seriesuid, .* and a class"),
        (GOOD.replace("6,0", "6, "), "line 3: expected a seriesuid, .* and a class"),
        (GOOD.replace("1.2.4", " "), "line 3: expected a seriesuid"),
        (GOOD.replace("6,0", '6,"x\ny"'), r"line 4: the class 'x\\ny' contains a line break"),
        (GOOD.replace("1.2.4", '"1\r2"'), r"the seriesuid '1\\r2' contains a line break"),
        (GOOD.replace("6,0", "6,0\0"), r"the class '0\\x00' contains a line break or a control character"),
        (GOOD.replace("6,0", '6,"0'), "cannot be read: unexpected end of data"),
        (f'{HEADER},patient\n1,1,1,1,0,"p\u2028q"\n', "the patient .* contains a line break"),
        (f'{HEADER},nodule\n1,1,1,1,0,"p\nq"\n', "the nodule .* contains a line break"),
        (
            f"{HEADER},nodule\n1,1,1,1,0,3\n1,1,1,1,1,3\n",
            "line 3: the nodule 1/3 is of class '1' here .* '0' in .*line 2",
        ),
        (f"{HEADER},patient\n1,1,1,1,0,A\n1,1,1,1,0,B\n", "line 3: the scan 1 is of patient 'B' here and of 'A' in"),
    ],
)
def test_a_wrong_list_is_refused(data, message, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, data)
    assert str(error.value).startswith(str(tmp_path / "list.csv")) and "\n" not in str(error.value)


def test_rows_without_a_nodule_are_cases_of_their_own(tmp_path):
    nothing = ["0", "-1", "nan", "None", "", " ", "NaN", "NULL"]
    rows = [f"1.2.3,1,1,1,0,{nodule}, A\n" for nodule in nothing] + 2 * ["1.2.3,1,1,1,1,7,A \n"]
    found = read(tmp_path, f"{HEADER},Nodule,Patient\n{''.join(rows)}")
    assert len({one.case for one in found}) == len(nothing) + 1
    assert found[-1].case == found[-2].case == "1.2.3/7"
    assert {one.patient for one in found} == {"A"}
    assert summary(found) == "10 candidates (8 of class '0', 2 of class '1') in 9 cases, 1 scans of 1 patients."


def test_a_list_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="nothing.csv cannot be read: No such file"):
        read_candidates(tmp_path / "nothing.csv")


def test_whole_numbers_of_a_column_with_empty_cells_are_whole(tmp_path):
    """pandas writes such columns as 1.0."""
    found = read(tmp_path, f"{HEADER},nodule,ignore\na,1,2,3,1.0,7.0,1.0\na,1,2,3,1,7,\nb,1,2,3,0.0,-1.0,0.0\n")
    assert [one.class_name for one in found] == ["1", "1", "0"] and [one.ignored for one in found] == [
        True,
        False,
        False,
    ]
    assert found[0].case == found[1].case == "a/7" and found[2].case == "b/line4"


def test_a_list_without_classes_is_read_for_prediction_alone(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("seriesuid,coordX,coordY,coordZ\na,1,2,3\n")
    (found,) = read_candidates(path, classified=False)
    assert found.center == (1, 2, 3) and found.class_name == ""
    with pytest.raises(DataError, match="has no column class"):
        read_candidates(path)
    path.write_text("seriesuid,coordX,coordY,coordZ,class\na,1,2,3,\na,1,x,3,0\n")
    with pytest.raises(DataError, match="line 3: expected a seriesuid and coordinates in mm, got"):
        read_candidates(path, classified=False)


def test_classes_get_names(tmp_path):
    found = read(tmp_path, GOOD)
    assert [one.class_name for one in rename_classes(found, ("vessel", "nodule"))] == ["nodule", "vessel"]
    for names in (("nodule",), ("a", "b", "c"), ("a", "a"), ("a", "")):
        with pytest.raises(DataError, match="expected a different name for each of the 2 classes 0, 1"):
            rename_classes(found, names)
