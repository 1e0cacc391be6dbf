-- ---------------------------------------------------------------- text attribution
-- Which words of an answer occur verbatim in registered documents. Overlap is not cause:
-- the model may have the words from elsewhere, or from nowhere. No policy pays by it.
CREATE TABLE openlora.dataset_documents (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dataset     bigint NOT NULL REFERENCES openlora.datasets ON DELETE CASCADE,
    name        text NOT NULL CHECK (name <> ''),
    contributor bigint REFERENCES openlora.contributors,
    text        text NOT NULL,
    added_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (dataset, name)
);
CREATE UNIQUE INDEX dataset_documents_order_idx ON openlora.dataset_documents (dataset, id);
COMMENT ON TABLE openlora.dataset_documents IS 'documents that answers are compared with, once lora_trace_index has read them';
COMMENT ON COLUMN openlora.dataset_documents.contributor IS 'who holds the document; NULL: the dataset''s owner';

-- The index: see src/pg/trace.h. It is not dumped: lora_trace_index makes it again.
CREATE TABLE openlora.trace_indexes (
    dataset bigint PRIMARY KEY REFERENCES openlora.datasets ON DELETE CASCADE,
    seed    bigint NOT NULL,
    n       bigint NOT NULL,
    fences  bytea NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE openlora.trace_indexes ALTER COLUMN fences SET STORAGE EXTERNAL;
CREATE TABLE openlora.trace_documents (
    dataset  bigint NOT NULL REFERENCES openlora.datasets ON DELETE CASCADE,
    start    bigint NOT NULL,
    document bigint NOT NULL,
    PRIMARY KEY (dataset, start)
);
CREATE TABLE openlora.trace_chunks (
    dataset bigint NOT NULL REFERENCES openlora.datasets ON DELETE CASCADE,
    part    smallint NOT NULL,
    chunk   int NOT NULL,
    numbers bytea NOT NULL
);
ALTER TABLE openlora.trace_chunks ALTER COLUMN numbers SET STORAGE PLAIN;
CREATE UNIQUE INDEX trace_chunks_key ON openlora.trace_chunks (dataset, part, chunk);
COMMENT ON TABLE openlora.trace_indexes IS 'index of a dataset''s documents';
COMMENT ON TABLE openlora.trace_documents IS 'at which word of the index a document begins';
COMMENT ON TABLE openlora.trace_chunks IS 'words (part 0) and suffixes (1) of the index';

-- What an index says of a document stays true: a new text is a new document.
CREATE FUNCTION openlora.keep_text() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.text IS DISTINCT FROM OLD.text OR NEW.dataset <> OLD.dataset OR NEW.id <> OLD.id THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state', MESSAGE = 'the text of a document is not changed',
            HINT = 'Delete it, and register the new text.';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep_text BEFORE UPDATE ON openlora.dataset_documents FOR EACH ROW EXECUTE FUNCTION openlora.keep_text();

CREATE FUNCTION openlora.trace_spans(dataset bigint, content text, min_words int, max_places int, OUT first_word int, OUT words int,
    OUT "position" int, OUT span text, OUT occurrences bigint, OUT places bigint[])
RETURNS SETOF record AS 'MODULE_PATHNAME', 'lora_trace_spans' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE COST 10000 ROWS 10;

CREATE FUNCTION lora_trace_index(dataset text) RETURNS bigint
AS 'MODULE_PATHNAME', 'lora_trace_index' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE COST 1000000;
COMMENT ON FUNCTION lora_trace_index(text) IS
    'reads the documents of a dataset of one''s own into the index that lora_trace searches; returns how many words there are';

-- As pg_stat_progress_*: of this database, and of those roles that the reader is a member of.
CREATE FUNCTION openlora.trace_jobs(OUT pid int, OUT role_id oid, OUT dataset_id bigint, OUT phase text, OUT done bigint, OUT total bigint,
    OUT started timestamptz)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'lora_trace_jobs' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE ROWS 10;
DO $do$
DECLARE
    options text := CASE WHEN current_setting('server_version_num')::int >= 150000 THEN 'WITH (security_invoker = true)' ELSE '' END;
BEGIN
    EXECUTE format($$
CREATE VIEW openlora.stat_progress_trace %s AS
SELECT j.pid, pg_catalog.pg_get_userbyid(j.role_id) AS role, d.name AS dataset, j.phase, j.done, j.total, j.started
FROM openlora.trace_jobs() j LEFT JOIN openlora.datasets d ON d.id = j.dataset_id
$$, options);
END $do$;
COMMENT ON VIEW openlora.stat_progress_trace IS
    'lora_trace_index at work: documents that are read, words to be sorted (done stays 0), chunks that are written';

-- A span is as long as it can be in its dataset. One that occurs more than max_occurrences
-- times is a common phrase, and left out. Its credit, its words, is split among all who hold
-- it, each counted once however many copies they registered; `uploader` holds nothing.
CREATE FUNCTION openlora.trace_rows(content text, datasets bigint[], min_words int[], max_occurrences int, uploader regrole,
    OUT rank bigint, OUT span text, OUT "position" int, OUT words int, OUT occurrences bigint,
    OUT dataset text, OUT document text, OUT document_word bigint, OUT contributor text, OUT credit numeric, OUT basis text)
RETURNS SETOF record LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
WITH found AS MATERIALIZED (
    SELECT d.id AS dataset, d.name, d.owner, s.*, sum(s.occurrences) OVER (PARTITION BY s.first_word, s.words) AS all_occurrences
    FROM unnest($2, $3) AS w (dataset, least) JOIN openlora.trace_indexes i ON i.dataset = w.dataset JOIN openlora.datasets d ON d.id = i.dataset,
    LATERAL openlora.trace_spans(d.id, $1, w.least, $4) s
), held AS (
    SELECT f.*, o.name AS document, p.place - t.start AS word,
           coalesce(c.name, r.name, pg_get_userbyid(f.owner)::text) AS contributor
    FROM found f CROSS JOIN LATERAL unnest(f.places) AS p (place)
    CROSS JOIN LATERAL (SELECT t.start, t.document FROM openlora.trace_documents t
                        WHERE t.dataset = f.dataset AND t.start <= p.place ORDER BY t.start DESC LIMIT 1) t
    JOIN openlora.dataset_documents o ON o.id = t.document
    LEFT JOIN openlora.contributors c ON c.id = o.contributor
    LEFT JOIN openlora.contributors r ON o.contributor IS NULL AND r.role = f.owner
    WHERE f.all_occurrences <= $4
      AND ($5 IS NULL OR coalesce(c.role, CASE WHEN o.contributor IS NULL THEN f.owner END)::oid IS DISTINCT FROM $5::oid)
), holders AS (
    SELECT h.first_word, h.words, count(DISTINCT h.contributor) AS n FROM held h GROUP BY 1, 2
), copies AS (
    SELECT h.first_word, h.words, h.contributor, count(*) AS n FROM held h GROUP BY 1, 2, 3
)
SELECT dense_rank() OVER (ORDER BY h.all_occurrences, h.words DESC, h.first_word), h.span, h."position", h.words,
       h.all_occurrences::bigint, h.name, h.document, h.word, h.contributor,
       trim_scale(round(h.words::numeric / (n.n * k.n), 9)), 'verbatim overlap, not cause'
FROM held h JOIN holders n USING (first_word, words) JOIN copies k USING (first_word, words, contributor)
ORDER BY 1, h.name, h.document, h.word
$$;
-- Who may compare what: anybody may compare anything with documents that are theirs. With
-- others' (datasets.traceable) only answers to their own requests, which were kept
-- (openlora.keep_text = full), and only spans of six words or more: what is found is the
-- asker's own text, and guessing at another's costs an answer for each guess.
ALTER TABLE openlora.datasets ADD COLUMN traceable boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN openlora.datasets.traceable IS 'whoever may use openlora may trace kept answers of their own into its documents; else its owner alone';

CREATE FUNCTION lora_trace(content text, datasets text[] DEFAULT NULL, min_words int DEFAULT 6, max_occurrences int DEFAULT 10,
    uploader regrole DEFAULT NULL, OUT rank bigint, OUT span text, OUT "position" int, OUT words int, OUT occurrences bigint,
    OUT dataset text, OUT document text, OUT document_word bigint, OUT contributor text, OUT credit numeric, OUT basis text)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'lora_trace_text' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100000 ROWS 10;
COMMENT ON FUNCTION lora_trace(text, text[], int, int, regrole) IS
    'the longest spans of a text that occur verbatim in documents of one''s own datasets, the rarest first';

CREATE FUNCTION lora_trace(inference_id bigint, datasets text[] DEFAULT NULL, min_words int DEFAULT 6, max_occurrences int DEFAULT 10,
    uploader regrole DEFAULT NULL, OUT rank bigint, OUT span text, OUT "position" int, OUT words int, OUT occurrences bigint,
    OUT dataset text, OUT document text, OUT document_word bigint, OUT contributor text, OUT credit numeric, OUT basis text)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'lora_trace_inference' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100000 ROWS 10;
COMMENT ON FUNCTION lora_trace(bigint, text[], int, int, regrole) IS
    'the same for a kept answer that one may see, also in traceable datasets, where spans have six words at least';

-- ---------------------------------------------------------------- rights, dumps
ALTER TABLE openlora.dataset_documents ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.trace_indexes ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.trace_documents ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.trace_chunks ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON openlora.dataset_documents
    USING (EXISTS (SELECT FROM openlora.datasets d WHERE d.id = dataset AND pg_catalog.pg_has_role(d.owner, 'USAGE')));
REVOKE ALL ON FUNCTION openlora.keep_text(), openlora.trace_spans(bigint, text, int, int), openlora.trace_jobs(),
    openlora.trace_rows(text, bigint[], int[], int, regrole) FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('openlora.dataset_documents', '');
SELECT pg_catalog.pg_extension_config_dump('openlora.dataset_documents_id_seq', '');
