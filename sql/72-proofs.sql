-- ---------------------------------------------------------------- proofs of receipts
-- The tree over receipts: see src/ledger/merkle.h. It grows with them, in one transaction.
CREATE TABLE openlora.ledger_hashes (
    level smallint NOT NULL CHECK (level >= 0),
    at    bigint NOT NULL CHECK (at >= 0),
    hash  bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (level, at)
);
COMMENT ON TABLE openlora.ledger_hashes IS 'hashes of receipts (level 0), and of complete subtrees of 256 of the level below';

CREATE TABLE openlora.ledger_keys (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    origin     text NOT NULL UNIQUE,
    key        text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE openlora.ledger_keys IS 'public keys that checkpoints are verified with; the last is in use';

CREATE TABLE openlora.checkpoints (
    origin    text NOT NULL REFERENCES openlora.ledger_keys (origin),
    size      bigint NOT NULL CHECK (size >= 0),
    root      bytea NOT NULL CHECK (octet_length(root) = 32),
    note      text NOT NULL,
    signed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (origin, size)
);
COMMENT ON TABLE openlora.checkpoints IS 'signed states of the tree: the first `size` receipts have this root';

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['ledger_hashes', 'ledger_keys', 'checkpoints'] LOOP
        EXECUTE format('CREATE TRIGGER unchanging BEFORE UPDATE OR DELETE OR TRUNCATE ON openlora.%I'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION openlora.keep_receipts()', t);
        EXECUTE format('ALTER TABLE openlora.%I ENABLE ALWAYS TRIGGER unchanging', t);
        PERFORM pg_catalog.pg_extension_config_dump(('openlora.' || t)::regclass, '');
    END LOOP;
END $$;
SELECT pg_catalog.pg_extension_config_dump('openlora.ledger_keys_id_seq', '');

CREATE FUNCTION lora_ledger_create_key(origin text, another boolean DEFAULT false) RETURNS text
AS 'MODULE_PATHNAME', 'lora_ledger_create_key' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION lora_ledger_create_key(text, boolean) IS
    'makes the key that checkpoints are signed with and returns its public half; another: in place of the one that is there';

CREATE FUNCTION lora_checkpoint() RETURNS text
AS 'MODULE_PATHNAME', 'lora_checkpoint' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION lora_checkpoint() IS 'a signed checkpoint (C2SP tlog-checkpoint) of all receipts that are written by now';

CREATE FUNCTION lora_receipt_proof(leaf bigint) RETURNS text
AS 'MODULE_PATHNAME', 'lora_receipt_proof' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION lora_receipt_proof(bigint) IS 'that a receipt is in the ledger (C2SP tlog-proof); lora_receipt_entry has its bytes';

CREATE FUNCTION lora_receipt_entry(leaf bigint) RETURNS bytea
AS 'MODULE_PATHNAME', 'lora_receipt_entry' LANGUAGE C STRICT STABLE PARALLEL UNSAFE;
COMMENT ON FUNCTION lora_receipt_entry(bigint) IS 'the bytes of a receipt that the tree is built over';

CREATE FUNCTION lora_consistency_proof(old_size bigint, new_size bigint) RETURNS text
AS 'MODULE_PATHNAME', 'lora_consistency_proof' LANGUAGE C STRICT STABLE PARALLEL UNSAFE;
COMMENT ON FUNCTION lora_consistency_proof(bigint, bigint) IS
    'that the ledger of new_size begins with that of old_size (RFC 9162): hashes in base 64, a line each';

CREATE FUNCTION lora_ledger_export(folder text) RETURNS bigint
AS 'MODULE_PATHNAME', 'lora_ledger_export' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION lora_ledger_export(text) IS 'writes the ledger of the newest checkpoint into a folder of the server (C2SP tlog-tiles); returns how many files';

CREATE FUNCTION lora_ledger_verify(from_leaf bigint DEFAULT NULL, to_leaf bigint DEFAULT NULL, OUT checked bigint, OUT bad bigint, OUT problem text)
AS 'MODULE_PATHNAME', 'lora_ledger_verify' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION lora_ledger_verify(bigint, bigint) IS
    'computes receipts, tree and checkpoints again; names the first receipt that is not as it was';
