"""Translations, help pages and their pictures as a running ComfyUI serves them."""

import urllib.request

from benchmarks.environment import ROOT
from benchmarks.locales import english, languages, read

DOCS = ROOT / "web" / "docs"


def test_the_host_serves_every_language(server):
    served, nodes = server.get("/i18n"), english()
    for language in languages():
        own = {name: texts for name, texts in served[language]["nodeDefs"].items() if name in nodes}
        assert own == read(language)


def test_the_host_serves_the_help_pages_and_their_pictures(server):
    for path in (*DOCS.glob("*.md"), *DOCS.glob("pictures/*")):
        url = f"{server.url}/extensions/unhype/docs/{path.relative_to(DOCS).as_posix()}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.read() == path.read_bytes()
