"""`bench erasure --only`: its figures are of the methods that ran, without the base or the others."""

from benchmarks import report
from benchmarks.erasure import QUICK


def row(kind, prompt, value):
    """What one prompt's pictures show."""
    both = [value, value]
    return {
        "kind": kind,
        "prompt": prompt,
        **{name: both for name in ("values", "probabilities", "second", "mapping", "nothing")},
    }


JOB = {
    "method": "ours",
    "concept": "cat",
    "rows": [row("erased", "a cat", 0.0), row("synonym", "a kitty", 1.0), row("other", "a dog", 1.0)],
    **{name: 1 for name in ("seconds", "parameters", "bytes", "peak_memory")},
}


def test_a_run_of_one_method_has_its_table_and_names_the_synonyms_that_are_drawn():
    results = report.methods_summary({"methods": [JOB]}, QUICK)
    assert results["methods"]["ours"]["acc_g"] == 1.0
    assert results["methods"]["ours"]["synonyms"] == {"a kitty": 1.0}
    lines = report.methods_text(results).splitlines()
    assert [word in lines[1] for word in ("ours", "0.000", "1.000")] == [True] * 3
    assert lines[-1] == "ours: a kitty: 1.00"


def test_two_objects_and_many_concepts_are_in_it_where_they_were_drawn():
    many = {"method": "ours", "concepts": 1, "h_c": 0.5, "h_c_base": 0.75, "bytes": 2e6}
    pair = {"method": "ours", "target_base": 1.0, "target_gone": 0.9, "other_kept": 0.6, "other_kept_base": 0.7}
    found = {"methods": [JOB], "many": [many], "composition": [pair, pair]}
    shown = report.methods_text(report.methods_summary(found, QUICK))
    assert "at best 0.750" in shown
    assert "0.900" in shown
