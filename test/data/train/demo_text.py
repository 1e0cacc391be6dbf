"""Texts of the demo model: read, clean, cut into passages, split.

Every voice becomes a list of documents; a document is a list of passages of at
most PASSAGE characters.  Documents are split into train / valid / test before
anything else looks at them:

  * valid picks the stopping point of an adapter,
  * test is only ever scored, and a small part of it ships as held-out text.

The splits are contiguous blocks where the text is continuous (a chapter next
to its neighbour shares names and phrases with it), and by question where the
text is a list of questions.
"""
import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

VOICES = ["stories", "shakespeare", "grimm", "manual", "sql"]
PASSAGE = 1200          # characters; 250 to 400 tokens of this tokenizer


def squeeze(s):
    return re.sub(r"\s+", " ", s).strip()


def cut(paragraphs, sep="\n\n", size=PASSAGE):
    """Group paragraphs into passages of about `size` characters."""
    out, cur, n = [], [], 0
    for p in paragraphs:
        while len(p) > size * 3 // 2:           # a giant paragraph: cut at a space
            k = p.rfind(" ", 0, size)
            k = k if k > 0 else size
            if cur and n < 200:                 # a heading goes with what it heads
                p, cur, n = sep.join(cur + [p]), [], 0
                continue
            if cur:
                out.append(sep.join(cur))
                cur, n = [], 0
            out.append(p[:k])
            p = p[k:].strip()
        if cur and n + len(p) > size:
            out.append(sep.join(cur))
            cur, n = [], 0
        cur.append(p)
        n += len(p) + len(sep)
    if cur:
        out.append(sep.join(cur))
    return out


def blocks(passages, per=8):
    """A continuous text has no documents: call every run of passages one."""
    return [passages[i:i + per] for i in range(0, len(passages), per)]


def split_tail(docs, part=0.05):
    """The last 5 % are test, the 5 % before them valid."""
    n = max(1, round(len(docs) * part))
    return {"train": docs[:-2 * n], "valid": docs[-2 * n:-n], "test": docs[-n:]}


# -- TinyStories -------------------------------------------------------------

def stories(data):
    text = (data / "corpus-tinystories-sample/tinystories_sample.txt").read_text("utf-8", errors="ignore")
    seen, docs = set(), []
    parts = text.split("<|endoftext|>")[:-1]            # the last one is cut off
    for s in parts:
        s = "\n".join(squeeze(x) for x in s.strip().splitlines() if x.strip())
        # Mis-decoded bytes of the source sample would only teach noise.
        if len(s) < 100 or "�" in s or "â€" in s or s in seen:
            continue
        seen.add(s)
        docs.append(cut(s.split("\n"), "\n"))
    return split_tail(docs)


# -- Shakespeare -------------------------------------------------------------

def shakespeare(data):
    text = (data / "corpus-tinyshakespeare/input.txt").read_text("utf-8")
    return split_tail(blocks(cut([p.strip() for p in text.split("\n\n") if p.strip()])))


# -- Grimm -------------------------------------------------------------------

def grimm(data):
    """One document per tale.  Lines are unwrapped; the curly quotes stay: they
    are three bytes each and keep the byte-level part of the tokenizer honest."""
    text = (data / "corpus-grimm/GrimmsFairyTales.txt").read_text("utf-8")
    docs = []
    for tale in re.split(r"\n{2,}(?=[A-Z][A-Z ,'’-]{5,}\n)", text):
        paras = [squeeze(p) for p in re.split(r"\n\s*\n", tale) if p.strip()]
        if paras:
            docs.append(cut(paras))
    # Tales differ much in length: every 20th one is test and its neighbour
    # valid, rather than the last few.
    out = {"train": [], "valid": [], "test": []}
    for i, d in enumerate(docs):
        out["test" if i % 16 == 7 else "valid" if i % 16 == 15 else "train"].append(d)
    return out


# -- PostgreSQL manual -------------------------------------------------------

class Page(HTMLParser):
    """Prose of one page: headings, paragraphs, terms, listings; no navigation."""
    BLOCK = {"p", "h1", "h2", "h3", "h4", "h5", "dt", "pre", "td", "th"}
    SKIP = {"navheader", "navfooter", "toc", "titlepage-nav", "indexterm"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.out, self.cur, self.tag = [], None, None
        self.skip, self.table = 0, 0

    def handle_starttag(self, tag, attrs):
        cls = (dict(attrs).get("class") or "").split()
        if tag == "head" or tag == "table":
            self.table += 1
        if tag == "div" and (self.skip or self.SKIP & set(cls)):
            self.skip += 1
        if tag in self.BLOCK:
            self.flush()
            self.cur, self.tag = [], tag
        elif tag == "br" and self.cur is not None:
            self.cur.append("\n")

    def handle_endtag(self, tag):
        if tag == "head" or tag == "table":
            self.table -= 1
        if tag == "div" and self.skip:
            self.skip -= 1
        if tag == self.tag:
            self.flush()

    def handle_data(self, data):
        if self.cur is not None and not self.skip and not self.table:
            self.cur.append(data)

    def flush(self):
        if self.cur:
            s = "".join(self.cur).replace("\u00a0", " ")
            s = s.strip("\n").rstrip() if self.tag == "pre" else squeeze(s)
            if s.strip():
                self.out.append(s)
        self.cur, self.tag = None, None


def manual(doc):
    """HTML pages in order of their names; release notes, keyword lists and
    indexes are lists and not prose."""
    docs = []
    for f in sorted(Path(doc).rglob("*.html")):
        if re.match(r"(release|bookindex|sql-keywords|features|acronyms|biblio|errcodes|contributors|index)", f.name):
            continue
        p = Page()
        p.feed(f.read_text("utf-8"))
        p.flush()
        paras = [x for x in p.out if len(x) < 4000]
        if sum(map(len, paras)) > 600:
            docs.append(cut(paras))
    out = {"train": [], "valid": [], "test": []}
    # Blocks of 5 neighbouring pages, so that a page and its continuation stay
    # on one side.
    for i, d in enumerate(docs):
        k = (i // 5) % 20
        out["test" if k == 9 else "valid" if k == 19 else "train"].append(d)
    return out


# -- question -> SQL ---------------------------------------------------------

def pg_sql(q):
    """The advising queries come with machine-made aliases and MySQL's double
    quoted strings; make them plain PostgreSQL."""
    q = re.sub(r'"([^"]*)"', lambda m: "'" + m.group(1).replace("'", "''") + "'", q)
    q = re.sub(r"\b(\w+) AS \1alias0\b", lambda m: m.group(1).lower(), q)
    q = re.sub(r"\b(\w+) AS \1alias(\d)\b", lambda m: f"{m.group(1).lower()} AS {m.group(1).lower()}{m.group(2)}", q)
    q = re.sub(r"\b(\w+)alias0\b", lambda m: m.group(1).lower(), q)
    q = re.sub(r"\b(\w+)alias(\d)\b", lambda m: m.group(1).lower() + m.group(2), q)
    q = re.sub(r"\.([A-Z_]+)\b", lambda m: "." + m.group(1).lower(), q)
    q = re.sub(r"\s+([,;)])", r"\1", q)
    q = re.sub(r"\(\s+", "(", q)
    return squeeze(q)


def pair(question, sql):
    return f"Question: {question}\nSQL: {sql}"


def sql(data):
    out, seen = {"train": [], "valid": [], "test": []}, set()
    for q in json.loads((data / "text2sql/advising.json").read_text()):
        example = {v["name"]: v["example"] for v in q["variables"]}
        for s in q["sentences"]:
            key = re.sub(r"\W+", " ", s["text"].lower()).strip()
            if key in seen:                     # no question on two sides
                continue
            seen.add(key)
            text, code = s["text"], q["sql"][0]
            for name in sorted(example, key=len, reverse=True):
                value = s["variables"].get(name) or example[name]
                text, code = text.replace(name, value), code.replace(name, value)
            text = squeeze(re.sub(r"\s+([?.,!;:'])", r"\1", text))
            # The split is by a digest of the question's template.
            h = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 100
            side = "test" if h < 5 else "valid" if h < 10 else "train"
            out[side].append([pair(text, pg_sql(code))])
    # A little variety beside the one university schema: sql-eval's questions.
    for name in ("instruct_basic_postgres.csv", "questions_gen_postgres.csv"):
        with open(data / "sql-eval-postgres" / name, newline="") as f:
            for r in csv.DictReader(f):
                code = r["query"].split(";")[0]
                cols = re.search(r"\{([^}]+)\}", code)
                code = code.replace("{}", cols.group(1).split(",")[0] if cols else "1")
                code = re.sub(r"[{}]", "", code)
                out["train"].append([pair(squeeze(r["question"]), squeeze(code) + ";")])
    return out


def load(data, doc):
    data = Path(data)
    return {"stories": stories(data), "shakespeare": shakespeare(data), "grimm": grimm(data),
            "manual": manual(doc), "sql": sql(data)}


def held_out(test, chars=8000):
    """A small, evenly spread part of the test split, about `chars` long."""
    passages = [p for d in test for p in d]
    step = max(1, sum(map(len, passages)) // chars)
    out, n = [], 0
    for p in passages[step // 2::step]:
        out.append(p)
        n += len(p)
        if n >= chars:
            break
    return out


if __name__ == "__main__":
    import sys
    for v, s in load(sys.argv[1], sys.argv[2]).items():
        print(v, {k: (len(d), sum(len(p) for x in d for p in x)) for k, d in s.items()})
        print("   ", s["test"][0][0][:500].replace("\n", "\n    "))
