-- ---------------------------------------------------------------- provenance as it was
-- An answer that was committed has its credits in openlora.attributions. Of one that was not,
-- there is the receipt, and who is credited follows from provenance as it was then: every
-- version of every row of it is kept here. A version counts for a receipt if
--   its transaction began no later than the request ended, and
--   it was committed when the receipt was written.
-- So no edit made afterwards counts, nor one that waited in an open transaction to look older
-- than it is; and all edits of a transaction count, or none. (The second is told by the
-- snapshot of the receipt's writing, and for versions of another cluster, before a restore,
-- by the first alone.)
CREATE FUNCTION openlora.system_identifier() RETURNS bigint
AS 'MODULE_PATHNAME', 'lora_system_identifier' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION openlora.system_identifier() IS 'the cluster''s: numbers of transactions say nothing in another';

CREATE TABLE openlora.receipt_snapshots (
    first_leaf bigint PRIMARY KEY CHECK (first_leaf >= 0),
    system     bigint NOT NULL,
    snapshot   pg_snapshot NOT NULL
);
COMMENT ON TABLE openlora.receipt_snapshots IS 'what was committed when receipts from first_leaf on were written, as the ledger process saw it';

CREATE TABLE openlora.provenance_log (
    kind        text NOT NULL CHECK (kind IN ('model', 'adapter', 'dataset', 'contributor', 'adapter_contributor', 'adapter_dataset',
                                              'dataset_contributor')),
    parent      bigint NOT NULL,
    child       bigint NOT NULL DEFAULT 0,
    version     int NOT NULL,
    gone        boolean NOT NULL,
    name        text,
    digest      bytea,
    role        regrole,
    share       int,
    at          timestamptz NOT NULL DEFAULT now(),
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    system      bigint NOT NULL DEFAULT openlora.system_identifier()
);
-- not unique: a restore writes first versions of its own beside those that it brings
CREATE INDEX provenance_log_key_idx ON openlora.provenance_log (kind, parent, child, version);
CREATE INDEX provenance_log_role_idx ON openlora.provenance_log ((role::oid)) WHERE kind = 'contributor';
CREATE INDEX provenance_log_at_idx ON openlora.provenance_log (at);
CREATE INDEX provenance_log_transaction_idx ON openlora.provenance_log (transaction);
COMMENT ON TABLE openlora.provenance_log IS 'all versions of adapters, datasets, contributors and their shares; rows are only ever added';
COMMENT ON COLUMN openlora.provenance_log.parent IS 'id of the adapter, dataset or contributor; of a model, the first 8 bytes of its digest';
COMMENT ON COLUMN openlora.provenance_log.child IS 'of a share: whom the parent gives it to';
COMMENT ON COLUMN openlora.provenance_log.role IS 'its owner, or the role that a contributor stands for';
COMMENT ON COLUMN openlora.provenance_log.at IS 'when the transaction began';

CREATE FUNCTION openlora.log_version(v openlora.provenance_log) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    last openlora.provenance_log;
BEGIN
    SELECT l.* INTO last FROM openlora.provenance_log l
    WHERE l.kind = v.kind AND l.parent = v.parent AND l.child = v.child ORDER BY l.version DESC, l.at DESC LIMIT 1;
    IF FOUND AND (last.gone, last.name, last.digest, last.role::oid, last.share)
       IS NOT DISTINCT FROM (v.gone, v.name, v.digest, v.role::oid, v.share) THEN
        RETURN;
    END IF;
    INSERT INTO openlora.provenance_log (kind, parent, child, version, gone, name, digest, role, share)
    VALUES (v.kind, v.parent, v.child, coalesce(last.version, 0) + 1, v.gone, v.name, v.digest, v.role, v.share);
END $$;

-- Argument of the trigger: the kind. Row by row, since that is how replication brings them.
CREATE FUNCTION openlora.log_provenance() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was openlora.provenance_log;
    v   openlora.provenance_log;
BEGIN
    CASE TG_ARGV[0]
    WHEN 'adapter' THEN
        was.parent := OLD.id;
        v.parent := NEW.id; v.name := NEW.name; v.digest := NEW.digest; v.role := NEW.owner;
    WHEN 'dataset' THEN
        was.parent := OLD.id;
        v.parent := NEW.id; v.name := NEW.name; v.role := NEW.owner;
    WHEN 'contributor' THEN
        was.parent := OLD.id;
        v.parent := NEW.id; v.name := NEW.name; v.role := NEW.role;
    WHEN 'model' THEN
        was.parent := ('x' || encode(substr(OLD.digest, 1, 8), 'hex'))::bit(64)::bigint;
        v.parent := ('x' || encode(substr(NEW.digest, 1, 8), 'hex'))::bit(64)::bigint;
        v.digest := NEW.digest; v.role := NEW.owner;
    WHEN 'adapter_contributor' THEN
        was.parent := OLD.adapter; was.child := OLD.contributor;
        v.parent := NEW.adapter; v.child := NEW.contributor; v.share := NEW.share;
    WHEN 'adapter_dataset' THEN
        was.parent := OLD.adapter; was.child := OLD.dataset;
        v.parent := NEW.adapter; v.child := NEW.dataset; v.share := NEW.share;
    WHEN 'dataset_contributor' THEN
        was.parent := OLD.dataset; was.child := OLD.contributor;
        v.parent := NEW.dataset; v.child := NEW.contributor; v.share := NEW.share;
    END CASE;
    was.kind := TG_ARGV[0];
    was.child := coalesce(was.child, 0);
    was.gone := true;
    v.kind := TG_ARGV[0];
    v.child := coalesce(v.child, 0);
    v.gone := false;
    IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND (was.parent, was.child) <> (v.parent, v.child) THEN
        PERFORM openlora.log_version(was);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM openlora.log_version(v);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION openlora.log_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO openlora.provenance_log (kind, parent, child, version, gone)
    SELECT l.kind, l.parent, l.child, l.version + 1, true
    FROM (SELECT DISTINCT ON (p.parent, p.child) p.* FROM openlora.provenance_log p WHERE p.kind = TG_ARGV[0]
          ORDER BY p.parent, p.child, p.version DESC, p.at DESC) l
    WHERE NOT l.gone;
    RETURN NULL;
END $$;

DO $$
DECLARE
    t    record;
    name text;
BEGIN
    FOR t IN VALUES ('base_models', 'model', 'true'), ('adapters', 'adapter', 'OLD.digest <> NEW.digest OR OLD.name <> NEW.name'
                     ' OR OLD.owner::oid <> NEW.owner::oid OR OLD.id <> NEW.id'),
                 ('datasets', 'dataset', 'true'), ('contributors', 'contributor', 'true'),
                 ('adapter_contributors', 'adapter_contributor', 'true'), ('adapter_datasets', 'adapter_dataset', 'true'),
                 ('dataset_contributors', 'dataset_contributor', 'true')
    LOOP
        EXECUTE format('CREATE TRIGGER logged AFTER INSERT OR DELETE ON openlora.%1$I'
                       ' FOR EACH ROW EXECUTE FUNCTION openlora.log_provenance(%2$L)', t.column1, t.column2);
        EXECUTE format('CREATE TRIGGER logged_change AFTER UPDATE ON openlora.%1$I'
                       ' FOR EACH ROW WHEN (%3$s) EXECUTE FUNCTION openlora.log_provenance(%2$L)', t.column1, t.column2, t.column3);
        EXECUTE format('CREATE TRIGGER logged_end AFTER TRUNCATE ON openlora.%1$I'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION openlora.log_truncated(%2$L)', t.column1, t.column2);
        EXECUTE format('ALTER TABLE openlora.%I ENABLE ALWAYS TRIGGER logged, ENABLE ALWAYS TRIGGER logged_change,'
                       ' ENABLE ALWAYS TRIGGER logged_end', t.column1);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['provenance_log', 'receipt_snapshots'] LOOP
        EXECUTE format('CREATE TRIGGER unchanging BEFORE UPDATE OR DELETE OR TRUNCATE ON openlora.%I'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION openlora.keep_receipts()', name);
        EXECUTE format('ALTER TABLE openlora.%I ENABLE ALWAYS TRIGGER unchanging', name);
        EXECUTE format('ALTER TABLE openlora.%I ENABLE ROW LEVEL SECURITY', name);
        PERFORM pg_catalog.pg_extension_config_dump(('openlora.' || name)::regclass, '');
    END LOOP;
END $$;

-- ---------------------------------------------------------------- looking back
-- A moment is a time, and the transactions that had begun by then but were not committed when
-- the receipt was written. Few receipts have any, so that most share their moments.
CREATE FUNCTION openlora.moment_of(leaf bigint, at timestamptz, OUT upto timestamptz, OUT system bigint, OUT late xid8[])
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
WITH b AS (SELECT s.system, s.snapshot FROM openlora.receipt_snapshots s WHERE s.first_leaf <= $1 ORDER BY s.first_leaf DESC LIMIT 1),
l AS (SELECT DISTINCT p.transaction, p.system FROM b JOIN openlora.provenance_log p
      ON p.system = b.system AND p.at <= $2 AND p.transaction >= pg_snapshot_xmin(b.snapshot)
     AND NOT pg_visible_in_snapshot(p.transaction, b.snapshot))
SELECT (SELECT p.at FROM openlora.provenance_log p WHERE p.at <= $2 ORDER BY p.at DESC LIMIT 1),
       (SELECT l.system FROM l LIMIT 1), ARRAY(SELECT l.transaction FROM l ORDER BY 1)
$$;

CREATE FUNCTION openlora.provenance_at(kind text, parent bigint, upto timestamptz, system bigint, late xid8[])
RETURNS SETOF openlora.provenance_log LANGUAGE sql STABLE ROWS 4 SET search_path = pg_catalog, pg_temp AS $$
SELECT l.* FROM (SELECT DISTINCT ON (p.child) p.* FROM openlora.provenance_log p
                 WHERE p.kind = $1 AND p.parent = $2 AND p.at <= $3 AND ($4 IS NULL OR p.system <> $4 OR p.transaction <> ALL ($5))
                 ORDER BY p.child, p.version DESC, p.at DESC) l
WHERE NOT l.gone
$$;

-- Who stood for a role. No row: nobody did.
CREATE FUNCTION openlora.contributor_at(role regrole, upto timestamptz, system bigint, late xid8[])
RETURNS SETOF openlora.provenance_log LANGUAGE sql STABLE ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
SELECT c.* FROM (SELECT DISTINCT p.parent FROM openlora.provenance_log p WHERE p.kind = 'contributor' AND p.role::oid = $1::oid) k,
     openlora.provenance_at('contributor', k.parent, $2, $3, $4) c
WHERE c.role::oid = $1::oid
$$;

-- What openlora.adapter_credits would have said then of an adapter, if it had had these bytes
-- by then; no rows if not. `name` is what it was called.
CREATE FUNCTION openlora.credits_at(adapter bigint, digest bytea, upto timestamptz, system bigint, late xid8[],
    OUT name text, OUT kind text, OUT dataset text, OUT contributor text, OUT contributor_id bigint, OUT share numeric)
RETURNS SETOF record LANGUAGE sql STABLE ROWS 10 SET jit = off SET search_path = pg_catalog, pg_temp AS $$
WITH a AS (
    SELECT x.name, x.role FROM openlora.provenance_at('adapter', $1, $3, $4, $5) x
    WHERE EXISTS (SELECT FROM openlora.provenance_log p WHERE p.kind = 'adapter' AND p.parent = $1 AND p.digest = $2 AND p.at <= $3
                  AND ($4 IS NULL OR p.system <> $4 OR p.transaction <> ALL ($5)))
), authors AS (
    SELECT p.child, p.share::numeric AS share FROM openlora.provenance_at('adapter_contributor', $1, $3, $4, $5) p
), sets AS (
    SELECT p.child, p.share::numeric AS share, d.name, d.role FROM openlora.provenance_at('adapter_dataset', $1, $3, $4, $5) p,
           openlora.provenance_at('dataset', p.child, $3, $4, $5) d
), makers AS (
    SELECT s.child AS set, q.child, q.share::numeric AS share
    FROM sets s, openlora.provenance_at('dataset_contributor', s.child, $3, $4, $5) q
), s AS (
    SELECT 'adapter' AS kind, NULL::text AS dataset, x.child AS contributor, NULL::regrole AS owner, x.share FROM authors x
    UNION ALL
    SELECT 'adapter', NULL, NULL, a.role, 1000000.0 - (SELECT coalesce(sum(x.share), 0.0) FROM authors x) FROM a
    UNION ALL
    SELECT 'dataset', x.name, m.child, NULL, x.share * m.share * 0.000001 FROM sets x JOIN makers m ON m.set = x.child
    UNION ALL
    SELECT 'dataset', x.name, NULL, x.role,
           x.share * 0.000001 * (1000000.0 - (SELECT coalesce(sum(m.share), 0.0) FROM makers m WHERE m.set = x.child)) FROM sets x
    UNION ALL
    SELECT 'dataset', NULL, NULL, a.role, 1000000.0 - (SELECT coalesce(sum(x.share), 0.0) FROM sets x) FROM a
)
SELECT a.name, s.kind, s.dataset, coalesce(c.name, r.name, pg_get_userbyid(s.owner::oid)::text), coalesce(c.parent, r.parent), s.share
FROM a CROSS JOIN s
LEFT JOIN LATERAL openlora.provenance_at('contributor', s.contributor, $3, $4, $5) c ON true
LEFT JOIN LATERAL openlora.contributor_at(s.owner, $3, $4, $5) r ON true
WHERE s.share > 0.0
$$;

-- For people: from when to when each share was what it was.
CREATE VIEW openlora.provenance_history AS
SELECT l.kind, l.parent, l.child, l.name, l.role, l.share, l.at AS valid_from, l.until AS valid_to
FROM (SELECT p.*, lead(p.at) OVER (PARTITION BY p.kind, p.parent, p.child ORDER BY p.version, p.at) AS until FROM openlora.provenance_log p) l
WHERE NOT l.gone;
COMMENT ON VIEW openlora.provenance_history IS 'provenance with the time that each row was valid; valid_to is NULL for what is valid now';

REVOKE ALL ON FUNCTION openlora.system_identifier(), openlora.log_version(openlora.provenance_log), openlora.log_provenance(),
    openlora.log_truncated(), openlora.moment_of(bigint, timestamptz),
    openlora.provenance_at(text, bigint, timestamptz, bigint, xid8[]),
    openlora.contributor_at(regrole, timestamptz, bigint, xid8[]),
    openlora.credits_at(bigint, bytea, timestamptz, bigint, xid8[]) FROM PUBLIC;
