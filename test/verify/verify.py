#!/usr/bin/env python3
"""Check what an openlora ledger publishes, without a database.

    verify.py ledger DIR --key KEY          an exported folder (C2SP tlog-tiles)
    verify.py proof FILE --key KEY --entry HEX [--role NAME --role-salt HEX]
                                            a proof of one receipt (C2SP tlog-proof)
    verify.py consistency OLD NEW PROOF --key KEY  two checkpoints and the proof between them
    verify.py vectors DIR                   RFC 6962 vectors of transparency-dev/merkle

KEY is the ledger's verifier key, name+id+base64.  Prints one line and exits 0
when all is well; otherwise says what is not, and exits 1.

Written from the specifications (RFC 8032, RFC 9162, C2SP signed-note,
tlog-checkpoint, tlog-proof, tlog-tiles, and src/ledger/entry.h), with nothing
but Python's standard library.
"""
import argparse
import base64
import binascii
import hashlib
import json
import struct
import sys
from pathlib import Path


class Bad(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Bad(what)


def unbase64(text, size=None):
    try:
        b = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Bad(f"{text!r} is no base 64")
    need(base64.b64encode(b).decode() == text, f"{text!r} is not written in the one way of base 64")
    need(size is None or len(b) == size, f"{text!r} has {len(b)} bytes, not {size}")
    return b


def whole(text):
    need(text.isascii() and text.isdigit() and (text == "0" or text[0] != "0"), f"{text!r} is no number")
    return int(text)


# -- Ed25519, RFC 8032, 5.1 ------------------------------------------------------

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)


def add(p, q):
    """Extended homogeneous coordinates (X, Y, Z, T)."""
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(n, p):
    q = (0, 1, 1, 0)
    while n:
        if n & 1:
            q = add(q, p)
        p = add(p, p)
        n >>= 1
    return q


def same(p, q):
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0


def point(b):
    y = int.from_bytes(b, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    need(y < P, "a point is not reduced")
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * ROOT % P
    need((x * x - x2) % P == 0 and not (x == 0 and sign), "a point is not on the curve")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


BASE = point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def signed(key, message, signature):
    a, r = point(key), point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    need(s < ORDER, "a signature is not reduced")
    k = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % ORDER
    return same(times(s, BASE), add(r, times(k, a)))


# -- notes and checkpoints ---------------------------------------------------------

class Key:
    def __init__(self, text):
        name, ident, encoded = (text.strip().split("+", 2) + ["", ""])[:3]
        b = unbase64(encoded, 33)
        need(b[0] == 1, "the key is not of Ed25519")
        self.name, self.key = name, b[1:]
        self.id = hashlib.sha256(name.encode() + b"\n" + b).digest()[:4]
        need(self.id.hex() == ident, "the key's id is not its own")


def open_note(note, key):
    """The text that a note signs."""
    text, empty, signatures = note.rpartition("\n\n")
    need(empty and signatures.endswith("\n"), "this is no signed note")
    text += "\n"
    for line in signatures[:-1].split("\n"):
        dash, name, encoded = (line.split(" ") + ["", ""])[:3]
        need(dash == "—" and line.count(" ") == 2, f"{line!r} is no signature")
        b = unbase64(encoded)
        if name == key.name and b[:4] == key.id:
            need(len(b) == 68 and signed(key.key, text.encode(), b[4:]), "the signature is not good")
            return text
    raise Bad(f"no signature of {key.name}")


def open_checkpoint(note, key):
    lines = open_note(note, key).split("\n")
    need(len(lines) >= 4 and lines[0] == key.name, "the checkpoint is of another origin")
    return whole(lines[1]), unbase64(lines[2], 32)


# -- the tree, RFC 9162, 2.1 --------------------------------------------------------

def leaf_hash(entry):
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(a, b):
    return hashlib.sha256(b"\1" + a + b).digest()


def root_of(leaves):
    """MTH, over a list of hashes."""
    stack = []  # (hash, how many leaves), as digits of a binary counter
    for h in leaves:
        n = 1
        while stack and stack[-1][1] == n:
            h, n = node_hash(stack.pop()[0], h), 2 * n
        stack.append((h, n))
    if not stack:
        return hashlib.sha256().digest()
    h = stack.pop()[0]
    while stack:
        h = node_hash(stack.pop()[0], h)
    return h


def climb(at, last, start, proof):
    """The two roots that a proof leads to: of all that it joins, and of the left alone."""
    both = left = start
    for p in proof:
        need(last > 0, "the proof is too long")
        if at & 1 or at == last:
            both, left = node_hash(p, both), node_hash(p, left)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            both = node_hash(both, p)
        at, last = at >> 1, last >> 1
    need(last == 0, "the proof is too short")
    return both, left


def check_inclusion(index, size, leaf, proof, root):
    need(0 <= index < size, "the index is not in the tree")
    need(climb(index, size - 1, leaf, proof)[0] == root, "the proof does not lead to the root")


def check_consistency(old, new, old_root, new_root, proof):
    need(0 < old <= new, "sizes that cannot be")
    if old == new:
        need(not proof and old_root == new_root, "same size, another root")
        return
    at, last, proof = old - 1, new - 1, list(proof)
    while at & 1:
        at, last = at >> 1, last >> 1
    if old & (old - 1) == 0:
        proof.insert(0, old_root)
    need(proof, "the proof is empty")
    both, left = climb(at, last, proof[0], proof[1:])
    need(left == old_root, "the proof does not lead to the old root")
    need(both == new_root, "the proof does not lead to the new root")


# -- entries: src/ledger/entry.h ------------------------------------------------------

class Reader:
    def __init__(self, b):
        self.b, self.at = b, 0

    def take(self, n):
        need(self.at + n <= len(self.b), "an entry is too short")
        self.at += n
        return self.b[self.at - n:self.at]

    def get(self, how):
        v = struct.unpack("<" + how, self.take(struct.calcsize("<" + how)))
        return v[0] if len(v) == 1 else v

    def text(self):
        return self.take(self.get("H")).decode("utf-8", "replace")


def read_entry(b):
    r = Reader(b)
    need(r.get("B") == 1, "an entry of a version that is not known")
    e = dict(zip(("leaf", "at", "database"), r.get("QqI")))
    e["role_digest"] = r.take(32).hex()
    e.update(zip(("inference", "attempt", "outcome", "task"), r.get("qIBB")))
    need(e["outcome"] < 5 and e["task"] < 2, "an entry with an outcome or task that is not known")
    e["base_model"] = r.take(32).hex()
    e["device"] = r.text()
    e.update(zip(("input", "cached", "output", "temperature", "top_k", "top_p", "min_p", "repetition",
                  "presence", "frequency", "max_tokens", "ignore_eos", "seed"), r.get("IIIfifffffiBQ")))
    need(e["cached"] <= e["input"], "an entry with more cached tokens than it has")
    e["adapters"] = []
    for _ in range(r.get("H")):
        digest = r.take(32).hex()
        e["adapters"].append((digest,) + r.get("qdI"))
    need(sum(a[3] for a in e["adapters"]) in (0, 1000000), "an entry whose shares are no whole")
    e["prompt_digest"], e["output_digest"] = r.take(32).hex(), r.take(32).hex()
    need(r.at == len(b), "an entry is too long")
    return e


# -- tiles ------------------------------------------------------------------------------

def number_path(n):
    groups = [f"{n % 1000:03d}"]
    while n >= 1000:
        n //= 1000
        groups.insert(0, f"x{n % 1000:03d}")
    return "/".join(groups)


def read_tiles(folder, kind, n):
    """Of each tile of a level (or of the entries), its number, width and bytes."""
    for tile in range((n + 255) // 256):
        width = min(256, n - 256 * tile)
        path = folder / "tile" / kind / (number_path(tile) + (f".p/{width}" if width < 256 else ""))
        need(path.is_file(), f"{path.relative_to(folder)} is missing")
        yield tile, width, path.read_bytes()


def read_entries(folder, n):
    for tile, width, b in read_tiles(folder, "entries", n):
        at = 0
        for i in range(width):
            need(at + 2 <= len(b), f"bundle {tile} is too short")
            size = int.from_bytes(b[at:at + 2], "big")
            need(at + 2 + size <= len(b), f"bundle {tile} is too short")
            yield 256 * tile + i, b[at + 2:at + 2 + size]
            at += 2 + size
        need(at == len(b), f"bundle {tile} is too long")


def check_level(folder, level, hashes):
    for tile, width, b in read_tiles(folder, str(level), len(hashes)):
        need(len(b) == 32 * width, f"tile {level}/{tile} has {len(b)} bytes")
        for i in range(width):
            need(b[32 * i:32 * i + 32] == hashes[256 * tile + i],
                 f"hash {256 * tile + i} of level {level} is not that of what is below it")


def check_ledger(folder, key):
    size, root = open_checkpoint((folder / "checkpoint").read_text(encoding="utf-8"), key)
    leaves, tokens = [], 0
    for i, b in read_entries(folder, size):
        try:
            e = read_entry(b)
        except Bad as bad:
            raise Bad(f"receipt {i}: {bad}")
        need(e["leaf"] == i, f"receipt {i} says that it is {e['leaf']}")
        tokens += e["input"] + e["output"]
        leaves.append(leaf_hash(b))
    level, hashes = 0, leaves
    while hashes:
        check_level(folder, level, hashes)
        hashes = [root_of(hashes[i:i + 256]) for i in range(0, len(hashes) - 255, 256)]
        level += 1
    need(root_of(leaves) == root, "the receipts are not those of the checkpoint")
    return f"{size} receipts of {tokens} tokens, as signed by {key.name}"


# -- commands ------------------------------------------------------------------------------

def check_proof(text, key, entry, role=None, salt=b""):
    head, empty, checkpoint = text.partition("\n\n")
    lines = head.split("\n")
    need(empty and lines.pop(0) == "c2sp.org/tlog-proof@v1", "this is no proof of C2SP's format")
    if lines and lines[0].startswith("extra "):
        unbase64(lines.pop(0)[6:])
    need(lines and lines[0].startswith("index "), "the proof has no index")
    index = whole(lines.pop(0)[6:])
    size, root = open_checkpoint(checkpoint, key)
    check_inclusion(index, size, leaf_hash(entry), [unbase64(x, 32) for x in lines], root)
    e = read_entry(entry)
    need(e["leaf"] == index, "the entry is of another receipt")
    if role is not None:
        need(hashlib.sha256(salt + role.encode()).hexdigest() == e["role_digest"], "the receipt is of another role")
    return f"receipt {index}{'' if role is None else ' of ' + role} is in the ledger of {size} of {key.name}"


def check_vectors(folder):
    counts = {"inclusion": 0, "consistency": 0}
    for kind in counts:
        for path in sorted(folder.glob(f"testdata/{kind}/**/*.json")):
            v = json.loads(path.read_text())
            decode = lambda x: base64.b64decode(x or "")
            try:
                proof = [decode(x) for x in v["proof"] or []]
                if kind == "inclusion":
                    need(len(decode(v["leafHash"])) == 32, "no hash")
                    check_inclusion(v["leafIdx"], v["treeSize"], decode(v["leafHash"]), proof, decode(v["root"]))
                else:
                    check_consistency(v["size1"], v["size2"], decode(v["root1"]), decode(v["root2"]), proof)
                good = True
            except Bad:
                good = False
            need(good != v["wantErr"], f"{path}: {v['desc']}")
            counts[kind] += 1
    need(all(counts.values()), "there are no vectors")
    return f"{counts['inclusion']} vectors of inclusion, {counts['consistency']} of consistency"


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("what", choices=["ledger", "proof", "consistency", "vectors"])
    a.add_argument("paths", nargs="+", type=Path)
    a.add_argument("--key")
    a.add_argument("--entry", help="the receipt's bytes, in hex")
    a.add_argument("--role", help="whose receipt it is said to be")
    a.add_argument("--role-salt", default="", help="openlora.receipts.role_salt, in hex")
    args = a.parse_args()
    # psql -At ends what it prints with a line of its own
    read = lambda i: args.paths[i].read_text(encoding="utf-8").rstrip("\n") + "\n"
    try:
        key = Key(args.key or "") if args.what != "vectors" else None
        if args.what == "ledger":
            print("good:", check_ledger(args.paths[0], key))
        elif args.what == "proof":
            print("good:", check_proof(read(0), key, bytes.fromhex(args.entry or ""), args.role, bytes.fromhex(args.role_salt)))
        elif args.what == "consistency":
            old, new = open_checkpoint(read(0), key), open_checkpoint(read(1), key)
            check_consistency(old[0], new[0], old[1], new[1], [unbase64(x, 32) for x in read(2).split()])
            print(f"good: {new[0]} receipts begin with the {old[0]} of before")
        else:
            print("good:", check_vectors(args.paths[0]))
    except (Bad, OSError, UnicodeDecodeError, ValueError) as bad:
        print("BAD:", bad)
        sys.exit(1)


if __name__ == "__main__":
    main()
