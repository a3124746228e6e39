"""Findings, which of them explain others, the diagnosis, and the pages of the rules."""

import json
from pathlib import Path

import pytest
from diagnosis.hand_made import healthy

import gradstab
from gradstab.diagnosis import Diagnosis, DiagnosisError, Finding
from gradstab.diagnosis.causes import EXPLAINS, explained
from gradstab.diagnosis.rules.catalogue import CODES


def finding(code, severity="warning", layer=None, **evidence):
    return Finding(code, severity, layer, f"{code} <is> there.", evidence, "- a\n+ b")


CHAIN = [
    finding("vanishing-gradients"), finding("saturated-units", layer="h"),
    finding("unscaled-input", gain=0.5),
]  # fmt: skip


def test_a_severity_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="`severity` must be one of 'error', 'warning', 'info'"):
        finding("dead-units", "fatal")


def test_consequences_fold_under_their_root_as_info():
    root, *rest = explained(CHAIN)
    assert root.code == "unscaled-input"
    assert root.is_root
    assert {each.explained_by for each in rest} <= {"unscaled-input", "saturated-units"}
    assert {each.severity for each in rest} == {"info"}


def test_errors_come_before_warnings_and_the_largest_gain_first():
    order = [
        finding("learning-rate-too-low", gain=0.3), finding("too-few-epochs", gain=0.6),
        finding("label-range", "error"), finding("no-nonlinearity", "info"),
    ]  # fmt: skip
    assert [each.code for each in explained(order) if each.is_root] == [
        "label-range", "no-nonlinearity",
    ]  # fmt: skip
    assert [each.code for each in explained(order[:2])] == [
        "too-few-epochs", "learning-rate-too-low",
    ]  # fmt: skip


def test_an_info_explains_no_warning():
    findings = explained([finding("unscaled-input", "info"), finding("dead-units")])
    assert all(each.is_root for each in findings)


def test_symptoms_come_after_causes():
    findings = explained([finding("collapsed-output"), finding("metric-mismatch")])
    assert findings[0].code == "metric-mismatch"


def test_what_explains_and_what_is_explained_are_codes():
    assert set(EXPLAINS) | {code for codes in EXPLAINS.values() for code in codes} <= CODES


def test_every_code_has_its_page():
    pages = Path(gradstab.__file__).parents[1] / "docs" / "rules"
    assert {each.stem for each in pages.glob("*.md")} - {"README"} == CODES


def test_a_diagnosis_shows_its_findings():
    diagnosis = Diagnosis(tuple(explained(CHAIN)), healthy())
    text = str(diagnosis)
    assert text.startswith("unscaled-input")
    assert "[warning] unscaled-input" in text
    assert "saturated-units in `h`, a consequence of" in text
    assert not diagnosis.ok
    assert [each.code for each in diagnosis.roots] == ["unscaled-input"]
    assert [each.name for each in diagnosis.layers] == ["first", "second", "out"]
    diagnosis.raise_if_errors()


def test_a_diagnosis_is_written_as_json_and_as_a_page(tmp_path):
    diagnosis = Diagnosis((finding("label-range", "error"),), healthy())
    assert json.loads(diagnosis.to_json())["findings"][0]["code"] == "label-range"
    page = diagnosis.write_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "label-range &lt;is&gt; there." in page
    assert "default-src 'none'" in page
    assert "<html" not in diagnosis._repr_html_()
    with pytest.raises(DiagnosisError, match="label-range"):
        diagnosis.raise_if_errors()


def test_a_healthy_diagnosis_says_how_well_it_learned():
    diagnosis = Diagnosis((), healthy())
    assert diagnosis.ok
    assert str(diagnosis).startswith("Nothing is wrong: 100 steps learned 80%.")
