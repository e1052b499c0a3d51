"""Who is one person: spellings of ids, and subjects in the names of scans."""

import pandas as pd
import pytest

from medjax.cohort import identity
from medjax.errors import InputError

GROUPS = [f"{group}_{n:02d}" for group in ("HC", "MS") for n in range(8)]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (["7", "12", "0"], [7, 12, 0]),
        (["7", "012"], ["7", "012"]),
        (["7", "anon"], ["7", "anon"]),
        (["-1", "2"], ["-1", "2"]),
        (["1" * 18], [int("1" * 18)]),
        (["1" * 30], ["1" * 30]),
    ],
)
def test_ids_are_integers_only_where_nothing_of_them_is_lost(text, ids):
    assert identity.column(pd.Series(text)).tolist() == ids


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("P7", "p7"),
        ("007", "7"),
        ("P07", "P7"),
        ("site1-P07", "site1-P007"),
        ("P 7", "P  7"),
        ("Zoe\u0308", "Zo\u00eb"),  # NFD and NFC.
        ("STRASSE 1", "Stra\u00dfe 1"),
        ("sub-01_ses-1", "sub-01_ses-2"),
        ("sub-01", "01"),
        ("1", "SUB-01_ses-2"),
        ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001"),
        ("7.0", "7"),
        ("P-7", "P7"),
        ("P_07", "P 7"),
        ("2019_001", "2019-1"),
        ("P7", "P7\u200b"),
        ("'7", "7"),
        ("1,000", "1000"),
        ("\u0667", "7"),  # Arabic.
        ("P\u20131", "P-1"),  # A dash that a word processor made,
        ("P\u22121", "P1"),  # or a sign.
        ('="007"', "007"),
    ],
)
def test_two_spellings_of_one_id_are_refused(first, second):
    with pytest.raises(InputError, match="patients: .* differ in case") as error:
        identity.refuse_spellings(["A1", first, "B2", second], "patients")
    assert repr(first) in str(error.value) and repr(second) in str(error.value)
    assert identity.shared([first, "C3"], ["D4", second]) == [first]


@pytest.mark.parametrize(
    "ids",
    [
        ["7", "70", "700"],
        ["P7", "P77"],
        ["a01b2", "a1b02"],  # Inner digits of codes of one length.
        ["1 11", "11 1"],
        ["1-11", "11-1", "111"],
        ["7.5", "7", "75"],
        [7, 8, 7],
    ],
)
def test_other_ids_are_other_people(ids):
    identity.refuse_spellings(ids, "patients")


def test_ids_are_shared_by_what_they_say():
    assert identity.shared([7, 8, 9], ["P7", "08", "9"]) == ["8", "9"]


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        (["P2", "P1"], "", ["P2", "P1"]),
        (["a/x", "b/x"], "", ["a/x", "b/x"]),
        (["s1/v1", "s1/v2", "s2/v1"], "(.*?)/", ["s1", "s1", "s2"]),
        (["siteA/1", "siteA/2"], "(.*)", ["siteA/1", "siteA/2"]),
        (["sub-7_ses-1", "sub-9_ses-1", "sub-7_ses-2"], r"-(\d+)", ["7", "9", "7"]),
        # BIDS: folders of subjects and sessions, or all in the name.
        (["sub-01/ses-1/anat", "sub-01/ses-2/anat"], "", ["sub-01"] * 2),
        (["sub-01/ses-1", "sub-01/ses-2"], "", ["sub-01"] * 2),
        (["raw/sub-01/anat", "raw/sub-02/anat"], "", ["sub-01", "sub-02"]),
        (["sub-a_ses-1_T1w", "sub-a_ses-2_T1w", "sub-ab_T1w"], "", [*["sub-a"] * 2, "sub-ab"]),
        # BraTS 2023; before it, the names had no sessions.
        (
            ["BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000"],
            "",
            ["BraTS-GLI-00000", "BraTS-GLI-00000", "BraTS-GLI-00002"],
        ),
        (["BraTS2021_00000", "BraTS2021_00002"], "", ["BraTS2021_00000", "BraTS2021_00002"]),
        (["Brats18_2013_10_1", "Brats18_2013_11_1"], "", ["Brats18_2013_10_1", "Brats18_2013_11_1"]),
        (["case_1", "case_2"], "", ["case_1", "case_2"]),
        (GROUPS, "", GROUPS),
        (["Doe_John", "Doe_Jane", "Roe_John", "Lee_Ann"], "", ["Doe_John", "Doe_Jane", "Roe_John", "Lee_Ann"]),
        (["anna", "bob", "carl"], "", ["anna", "bob", "carl"]),
        (["scan_a", "scan_b", "scan_c"], "", ["scan_a", "scan_b", "scan_c"]),
        (
            ["Brats18_CBICA_AAB_1", "Brats18_2013_10_1", "Brats18_2013_11_1"],
            "",
            ["Brats18_CBICA_AAB_1", "Brats18_2013_10_1", "Brats18_2013_11_1"],
        ),
        (["CC1_siemens", "CC2_ge", "CC3_ge"], "", ["CC1_siemens", "CC2_ge", "CC3_ge"]),
        (["P1_T1w", "P2_T1w", "P11_T1w"], "", ["P1_T1w", "P2_T1w", "P11_T1w"]),
        (["TCGA-02-06", "TCGA-02-07"], "", ["TCGA-02-06", "TCGA-02-07"]),
        (["002_S_0413", "002_S_0559", "005_S_0221"], "", ["002_S_0413", "002_S_0559", "005_S_0221"]),
    ],
)  # fmt: skip
def test_the_scans_of_a_patient_have_one_id(names, pattern, expected):
    assert identity.patients(names, pattern) == expected


@pytest.mark.parametrize(
    ("names", "pattern", "message"),
    [
        (["s1/v1", "s1/v2", "s2/v1"], "", "s1: holds several volumes.*data.patient"),
        (["s1/v1/anat", "s1/v2/anat"], "", "s1: holds several volumes"),
        (["P01_1", "P01_2", "P02_1"], "", "P01_1 and P01_2: may be one patient"),
        (["P01-baseline", "P01-followup", "P02"], "", "may be one patient"),
        (["OAS1_MR_d0", "OAS1_MR_d12", "OAS2_MR_d3"], "", "may be one patient"),
        (["P1_20190304", "P1_20200101", "P2_20190304"], "", "may be one patient"),
        (["P1_1996.08.23", "P1_1997.01.01", "P2_1996.08.23"], "", "may be one patient"),
        (["P1-23.08.1996", "P1-01-01-1997", "P2-23.08.1996"], "", "may be one patient"),
        (["P1_1", "p1_2", "P2_1"], "", "P1_1 and p1_2: may be one patient"),
        (["P1/v1", "p1/v2", "P2/v1"], "", "p1: holds several volumes"),
        (["P1_ses-1", "P1_ses-2", "P2_ses-1"], "", "may be one patient"),
        (["P1", "P1_v2", "P2"], "", "P1 and P1_v2: may be one patient"),
        (["P1_12m", "P1_24m", "P2_12m"], "", "may be one patient"),
        (["P1_left", "P1_right", "P2_left"], "", "may be one patient"),
        (["P1_L", "P1_R", "P2_L"], "", "may be one patient"),
        (["P1", "P1 (2)", "P2"], "", "may be one patient"),
        (["P1a", "P1b", "P2a"], "", "may be one patient"),
        (["P1V1", "P1V2", "P2V1"], "", "P1V1 and P1V2: may be one patient"),
        (["patient1scan1", "patient1scan2", "patient2scan1"], "", "may be one patient"),
        (["P1#1", "P1#2", "P2#1"], "", "may be one patient"),
        (["P-001_week-000-1", "P-001_week-044", "P-002_week-000-1"], "", "may be one"),
        (
            ["Doe_John_1", "Doe_John_2", "Roe_Jane_1"],
            "",
            "Doe_John_1 and Doe_John_2: may be",
        ),
        # No number tells a person from a visit.
        (["Doe_1", "Doe_2", "Roe_1", "Roe_2"], "", "Doe_1 and Doe_2: may be one"),
        (["Doe_BL", "Doe_FU", "Roe_BL", "Lee_BL"], "", "Doe_BL and Doe_FU: may be one"),
        (["vorDoe", "vorRoe", "nachDoe"], "", "may be one patient"),
        (["Doe", "Doe_rescan", "Roe", "Lee"], "", "Doe and Doe_rescan: may be one"),
        (["P1_preop", "P1_postop", "P2_preop"], "", "may be one patient"),
        (["P1", "P1_rescan", "P2"], "", "P1 and P1_rescan: may be one patient"),
        (["P1_initial", "P1_FU", "P2_initial"], "", "may be one patient"),
        (["P1_1.5T", "P1_3T", "P2_3T"], "", "P1_1.5T and P1_3T: may be one patient"),
        (["P1_T1_axial", "P1_T1_coronal", "P2_T1_axial"], "", "may be one patient"),
        (["P1_ses-1_T1w", "P1_ses-2_T1w", "P2_ses-1_T1w"], "", "may be one patient"),
        (["a/sub-01/anat", "b/sub-01/anat"], "", "a/sub-01 and b/sub-01: may be one"),
        (["sub-01/ses-1", "sub-01/ses-2"], "(.*)", "differ in .* session"),
        (["sub-01/anat", "sub-1/anat"], "", "'sub-01' and 'sub-1' differ in"),
        (["s1/v1", "s2/v1"], "v(", r"data.patient='v\(': "),
        (["s1/v1"], "s1", "finds no patient in 's1/v1'"),
        (["s1/v1", "s2/v1"], "s1/(.*)", "finds no patient in 's2/v1'"),
    ],
)
def test_nobody_guesses_whom_a_scan_shows(names, pattern, message):
    with pytest.raises(InputError, match=message):
        identity.patients(names, pattern)
