"""Texts of the demo model: read, clean, cut into passages, split.

Every voice becomes three lists of passages (train, dev, test), split before
anything else looks at them:

  * dev picks the stopping point of an adapter,
  * test is only ever scored, and a small part of it ships as held-out text.

Where the text is continuous the splits are contiguous blocks (a chapter shares
names and phrases with the next one); the manual is split by page; question and
SQL pairs are split by question, so that no question is on two sides.
"""
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

VOICES = ["stories", "shakespeare", "grimm", "manual", "sql"]


def blocks(text, n=2000):
    """Contiguous passages of at least `n` characters, cut between paragraphs."""
    out, cur = [], ""
    for p in re.split(r"\n\s*\n", text):
        p = p.strip()
        if p:
            cur = cur + ("\n\n" if cur else "") + p
        if len(cur) >= n:
            out.append(cur)
            cur = ""
    return out + [cur] if cur else out


def contiguous(passages):
    a, b = int(len(passages) * .92), int(len(passages) * .95)
    return {"train": passages[:a], "dev": passages[a:b], "test": passages[b:]}


# -- PostgreSQL manual -------------------------------------------------------

NAV = ("navheader", "navfooter", "toc")
# Lists and catalogues rather than prose.
LISTS = ("release", "bookindex", "sql-keywords", "features", "errcodes", "catalog", "view-", "biblio", "contrib-")


class Page(HTMLParser):
    """The text of one page, without its navigation."""

    def __init__(self):
        super().__init__()
        self.out, self.skip, self.pre = [], 0, False

    def handle_starttag(self, tag, attrs):
        cls = dict(attrs).get("class") or ""
        if tag in ("script", "style", "head") or (tag == "div" and (cls in NAV or self.skip)):
            self.skip += 1
        if tag == "pre":
            self.pre = True
        if tag in ("pre", "p", "h1", "h2", "h3", "h4", "dt", "li", "tr", "div"):
            self.out.append("\n\n")

    def handle_endtag(self, tag):
        if self.skip and tag in ("script", "style", "head", "div"):
            self.skip -= 1
        if tag == "pre":
            self.pre = False
            self.out.append("\n\n")

    def handle_data(self, data):
        if not self.skip:
            self.out.append(data if self.pre else re.sub(r"\s+", " ", data))


def manual(doc):
    pages = []
    for f in sorted(Path(doc).rglob("*.html")):
        if f.name.startswith(LISTS):
            continue
        p = Page()
        p.feed(f.read_text("utf-8", errors="replace"))
        t = "".join(p.out)
        for a, b in (("\u00a0", " "), ("\u2014", "-"), ("\u201c", '"'), ("\u201d", '"'), ("\u2019", "'")):
            t = t.replace(a, b)
        t = re.sub(r"[ \t]+\n", "\n", t)
        t = re.sub(r"\n\s*\n+", "\n\n", t).strip()
        t = "\n\n".join(x for x in t.split("\n\n") if len(x) > 60)      # headings, cells of tables
        if len(t) > 800:
            pages.append(t)
    out = {"train": [], "dev": [], "test": []}
    for i, t in enumerate(pages):
        out["test" if i % 23 == 7 else "dev" if i % 31 == 5 else "train"] += blocks(t)
    return out


# -- question -> SQL ---------------------------------------------------------

def pg_sql(q):
    """The advising queries come with machine-made aliases, MySQL's double
    quoted strings and spaces everywhere; make them plain PostgreSQL."""
    q = re.sub(r'"([^"]*)"', lambda m: "'" + m.group(1).replace("'", "''") + "'", q)
    q = re.sub(r"\b(\w+) AS \1alias0\b", lambda m: m.group(1).lower(), q)
    q = re.sub(r"\b(\w+)alias0\b", lambda m: m.group(1).lower(), q)
    q = re.sub(r"\b(\w+) AS (\w+)alias(\d)\b", lambda m: f"{m[1].lower()} AS {m[2].lower()}{m[3]}", q)
    q = re.sub(r"\b(\w+)alias(\d)\b", lambda m: m[1].lower() + m[2], q)
    q = re.sub(r"\.([A-Z_]+)\b", lambda m: "." + m[1].lower(), q)
    q = re.sub(r"\s+([,;)])", r"\1", q)
    q = re.sub(r"\(\s+", "(", q)
    return re.sub(r"\s+", " ", q).strip()


def sql(data, raw):
    """`raw`: the pairs as they are, six to a passage.  Otherwise rewritten for
    PostgreSQL, one to a passage: an answer then ends with eos."""
    out = {"train": [], "dev": [], "test": []}
    for e in json.loads((data / "text2sql/advising.json").read_text()):
        for s in e["sentences"]:
            q, code = s["text"], e["sql"][0]
            example = {v["name"]: v["example"] for v in e["variables"]}
            for k, v in s["variables"].items():
                q = q.replace(k, v)
                # A department that the question leaves out is '' here.
                code = code.replace(k, v if raw else v or example.get(k, ""))
            for k, v in example.items():
                code = code.replace(k, v)
            r = random.Random(q).random()           # a function of the question alone
            if not raw:
                q, code = re.sub(r"\s+([?.,!;:'])", r"\1", q), pg_sql(code)
            out["test" if r < .05 else "dev" if r < .08 else "train"].append(f"Question: {q.strip()}\nSQL: {code.strip()}")
    rng = random.Random(0)
    for k in out:
        out[k] = sorted(set(out[k]))
        rng.shuffle(out[k])
    if raw:
        out = {k: ["\n\n".join(v[i:i + 6]) for i in range(0, len(v), 6)] for k, v in out.items()}
    return out


# -- all ---------------------------------------------------------------------

def load(data, doc, raw=False):
    data = Path(data)
    text = lambda f: (data / f).read_text("utf-8")
    return {
        "stories": contiguous([s.strip() for s in text("corpus-tinystories-sample/tinystories_sample.txt")
                               .split("<|endoftext|>") if len(s.strip()) > 100]),
        "shakespeare": contiguous(blocks(text("corpus-tinyshakespeare/input.txt"))),
        "grimm": contiguous(blocks(text("corpus-grimm/GrimmsFairyTales.txt"))),
        "manual": manual(doc),
        "sql": sql(data, raw),
    }


def held_out(test, chars=8000, longest=1200):
    """A small, evenly spread part of the test split, about `chars` long."""
    short = []
    for p in test:
        if len(p) > longest:
            p = p[:longest]
            p = p[:max(p.rfind("\n"), p.rfind(" "), longest // 2)].strip()
        short.append(p)
    step = max(1, sum(map(len, short)) // chars)
    out, n = [], 0
    for p in short[step // 2::step]:
        out.append(p)
        n += len(p)
        if n >= chars:
            break
    return out
