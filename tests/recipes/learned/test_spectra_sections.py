"""The sections on each adapter: a line for each layer, a colour for each adapter."""

import pytest

from loralib.recipes.learned.drawings import colour_of
from loralib.recipes.learned.page import rendered
from loralib.recipes.learned.spectra_sections import median_spectra, norms, spectra_section, where_section
from pages import Page
from reported import along, analysed, random_adapter


def test_norms_are_over_the_blocks_by_role_and_adapter() -> None:
    measured = analysed(random_adapter(2, 0), random_adapter(3, 1))
    found = norms(measured)
    assert list(found) == ["query", "value"]
    for role, lines in found.items():
        assert [(line.label, line.colour) for line in lines] == [("one", colour_of(0)), ("two", colour_of(1))]
        assert [x for x, _ in lines[0].points] == [0.0, 1.0, 10.0]
        assert lines[1].points[2][1] == measured.alone[1].spectra[f"encoder.layer.10.attention.{role}"].norm
    pictures = where_section(measured).galleries[0].pictures
    assert [picture.legend for picture in pictures] == [[(colour_of(0), "one"), (colour_of(1), "two")]] * 2
    assert where_section(analysed(random_adapter(2, 0))).galleries[0].pictures[0].legend == ()


def test_spectra_have_a_thin_line_a_layer_and_a_thick_median() -> None:
    measured = analysed(random_adapter(3, 0))
    section = spectra_section(measured)
    for picture in section.galleries[0].pictures:
        assert picture.drawing.count('class="line faint"') == 3
        assert picture.drawing.count('class="line"') == 1
    assert len(section.tables[0].rows) == 6
    assert Page(rendered("t", [], [section, where_section(measured)])).problems == []


def test_medians_are_those_of_each_singular_value() -> None:
    measured = analysed(along(0, 1, 2))
    [[line]] = median_spectra(measured).values()
    assert [y for _, y in line.points] == pytest.approx([4.0, 2.0, 1.0])


def test_an_adapter_of_zeros_has_no_spectrum_to_draw() -> None:
    measured = analysed(along(0, strength=(0.0,)))
    assert spectra_section(measured).galleries == []
    assert median_spectra(measured) == {}
    assert Page(rendered("t", [], [spectra_section(measured), where_section(measured)])).problems == []
