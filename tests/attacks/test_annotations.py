"""Proposals and ground truth in other tools' forms: boxes come out, or one sentence says what is wrong."""

import pickle
import struct

import numpy as np
import pytest

_COCO = (
    '{"images":[{"id":1,"file_name":"a","width":%s,"height":5}],"categories":[{"id":1,"name":"x"}],'
    '"annotations":[%s]}'
)
_BOX = '{"image_id":1,"category_id":1,"bbox":[1,2,3,4]}'
_DEEP = "[" * 10**5
JSON = {
    "width_beyond_64_bits": _COCO % ("9" * 30, _BOX),
    "width_of_5000_digits": _COCO % ("9" * 5000, _BOX),
    "width_infinite": _COCO % ("Infinity", _BOX),
    "width_a_word": _COCO % ('"x"', _BOX),
    "box_not_a_number": _COCO % (5, _BOX.replace("[1,2", "[NaN,2")),
    "box_infinite": _COCO % (5, _BOX.replace("[1,2", "[-Infinity,1e999")),
    "box_of_400_digits": _COCO % (5, _BOX.replace("[1", "[" + "9" * 400)),
    "box_of_three": _COCO % (5, _BOX.replace("[1,", "[")),
    "box_a_dictionary": _COCO % (5, _BOX.replace("[1,2,3,4]", '{"a":1}')),
    "box_of_boxes": _COCO % (5, _BOX.replace("[1,2,3,4]", "[[1,2,3,4]]")),
    "annotation_a_number": _COCO % (5, "7"),
    "id_a_list": _COCO % (5, _BOX.replace('"image_id":1', '"image_id":[]')),
    "nested_without_end": _DEEP,
    "nested_in_an_image": '{"images":[' + _DEEP,
    "one_id_twice": '{"images":[{"id":1,"file_name":"a"},{"id":1,"file_name":"b"}],"annotations":[]}',
    "images_a_number": '{"images":5,"categories":[],"annotations":[]}',
    "cut": _COCO[:40],
    "no_json": "\0\1\2",
}


_HARMLESS = {("coco", "width_beyond_64_bits")}  # it is only compared with the image's


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("reader", ["coco", "truth", "soco"])
def test_a_broken_json_is_refused(confined, tmp_path, name, reader):
    (tmp_path / "a.json").write_text(JSON[name])
    outcome = confined.read(reader, tmp_path / "a.json")
    assert outcome.kind == ("value" if (reader, name) in _HARMLESS else "refused"), outcome


_OBJECT = (
    "<annotation><filename>a</filename><size><width>%s</width></size><object><name>x</name><bndbox><xmin>%s</xmin>"
    "<ymin>1</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>"
)
_LAUGHS = (
    '<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{("&" + chr(97 + i) + ";") * 10}">' for i in range(9))
    + "]><annotation><filename>&j;</filename></annotation>"
)
XML = {
    "entities_that_multiply": (_LAUGHS, "refused"),
    "an_entity_that_is_a_file": (
        '<!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><filename>&a;</filename></annotation>',
        "refused",
    ),
    "an_encoding_of_many_bytes": ('<?xml version="1.0" encoding="gb2312"?><annotation/>', "refused"),
    "an_encoding_nobody_knows": ('<?xml version="1.0" encoding="nope"?><annotation/>', "refused"),
    "a_box_that_is_no_number": (_OBJECT % (5, "nan"), "refused"),
    "an_infinite_box": (_OBJECT % (5, "-inf"), "refused"),
    "a_width_of_5000_digits": (_OBJECT % ("9" * 5000, 1), "value"),
    "a_width_of_superscripts": (_OBJECT % ("\N{SUPERSCRIPT TWO}", 1), "value"),
    "nesting_without_end": ("<a>" * 10**5, "refused"),
    "deep_nesting": ("<a>" * 10**5 + "</a>" * 10**5, "value"),
}


@pytest.mark.parametrize("name", XML)
def test_hostile_xml(confined, tmp_path, name):
    text, kind = XML[name]
    (tmp_path / "a.xml").write_text(text, encoding="utf-8")
    outcome = confined.read("truth", tmp_path)
    assert outcome.kind == kind, outcome
    assert "root:" not in outcome.text


class _Call:
    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def _laughs():
    value = [1.0, 2.0]
    for _ in range(26):
        value = [value, value]
    return value


PICKLES = {
    "a_memo_of_gigabytes": lambda marker: b"\x80\x04}r\xff\xff\xff\x1f.",
    "bytes_of_exabytes": lambda marker: b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "bytes_of_9_gigabytes": lambda marker: b"\x80\x04\x8e" + struct.pack("<Q", 9 * 2**30) + b"x.",
    "a_frame_of_exabytes": lambda marker: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
    "an_array_of_its_own_size": lambda marker: pickle.dumps({"boxes": [_Call(np.ndarray, (2**28, 4), "f4")]}),
    "lists_that_multiply": lambda marker: pickle.dumps({"a": {"bboxes": _laughs(), "scores": [1]}}),
    "lists_in_lists": lambda marker: b"\x80\x04" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "a_dictionary_of_a_number": lambda marker: b"cbuiltins\ndict\n(I5\ntR.",
    "a_key_that_cannot_be": lambda marker: b"\x80\x04}]K\x01s.",
    "objects_in_an_array": lambda marker: pickle.dumps({"a": {"bboxes": np.array([[{}]], object), "scores": [1]}}),
    "code": lambda marker: pickle.dumps({"boxes": [_Call(exec, f"open({str(marker)!r}, 'w')")]}),
    "code_by_another_name": lambda marker: b"cos\nsystem\n(S'touch %s'\ntR." % str(marker).encode(),
    "code_as_an_attribute": lambda marker: b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.tofile.x.y\x93.",
    "a_persistent_id": lambda marker: b"\x80\x04K\x01Q.",
    "an_extension": lambda marker: b"\x80\x04\x82\x01.",
    "nothing": lambda marker: b"",
    "half": lambda marker: pickle.dumps({"a": np.zeros(100)})[:-40],
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused_and_runs_nothing(confined, tmp_path, name):
    marker = tmp_path / "it_ran"
    (tmp_path / "a.pkl").write_bytes(PICKLES[name](marker))
    outcome = confined.read("pickled", tmp_path / "a.pkl", megabytes=128, seconds=20)
    assert outcome.kind == "refused", outcome
    assert not marker.exists()
