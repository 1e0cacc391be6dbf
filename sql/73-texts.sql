-- ---------------------------------------------------------------- texts that are kept
CREATE TABLE openlora.inference_texts (
    inference  bigint PRIMARY KEY REFERENCES openlora.inferences ON DELETE CASCADE,
    prompt     text NOT NULL,
    completion text,
    output     text
);
COMMENT ON TABLE openlora.inference_texts IS 'prompts and answers, of those who asked while openlora.keep_text was full';
COMMENT ON COLUMN openlora.inference_texts.completion IS 'what lora_score was asked about';
ALTER TABLE openlora.inference_texts ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON openlora.inference_texts
    USING (EXISTS (SELECT FROM openlora.inferences i WHERE i.id = inference));
SELECT pg_catalog.pg_extension_config_dump('openlora.inference_texts', '');

-- What was asked, if it can be asked again; an error if not.
CREATE FUNCTION openlora.replay_of(inference bigint, OUT prompt text, OUT adapters text[], OUT weights float8[], OUT request openlora.inferences)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed text;
BEGIN
    SELECT i.* INTO request FROM openlora.inferences i WHERE i.id = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('inference %s does not exist', $1);
    END IF;
    IF request.finish_reason = 'scored' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported', MESSAGE = format('inference %s has generated nothing', $1);
    END IF;
    SELECT t.prompt INTO prompt FROM openlora.inference_texts t WHERE t.inference = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state', MESSAGE = format('the prompt of inference %s was not kept', $1),
            HINT = 'openlora.keep_text = full keeps prompts.';
    END IF;
    SELECT array_agg(u.name ORDER BY u.position), array_agg(u.weight ORDER BY u.position),
           string_agg(u.name, ', ') FILTER (WHERE a.digest IS DISTINCT FROM u.digest)
    INTO adapters, weights, changed
    FROM openlora.inference_adapters u LEFT JOIN openlora.adapters a ON a.name = u.name WHERE u.inference = $1;
    IF changed IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('inference %s cannot be run again: adapters have changed or gone', $1), DETAIL = changed;
    END IF;
END $$;

-- Whether the tokens of an answer have the digest of the receipt; NULL: there is no receipt,
-- or no salt.
CREATE FUNCTION openlora.has_digest(request openlora.inferences, tokens jsonb) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT bool_or(r.output_digest = sha256(($1).salt || coalesce((
        SELECT string_agg(set_byte(set_byte(set_byte(set_byte('\x00000000'::bytea, 0, t & 255), 1, t >> 8 & 255), 2, t >> 16 & 255), 3, t >> 24 & 255),
                          ''::bytea ORDER BY n)
        FROM (SELECT (e ->> 'token')::int, n FROM jsonb_array_elements($2) WITH ORDINALITY AS x (e, n)) AS y (t, n) WHERE t >= 0), '')))
    FROM openlora.receipts r WHERE r.inference = ($1).id AND r.outcome = 'done'
$$;

CREATE FUNCTION lora_replay(inference_id bigint, OUT same boolean, OUT compared text, OUT output text, OUT kept text, OUT replay_id bigint)
LANGUAGE plpgsql STRICT VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    q      record;
    answer record;
    model  bytea;
    device text;
BEGIN
    SELECT * INTO q FROM openlora.replay_of($1);
    SELECT t.output INTO kept FROM openlora.inference_texts t WHERE t.inference = $1;
    SELECT * INTO answer FROM @extschema@.lora_complete(q.adapters, q.prompt, weights => q.weights, max_tokens => (q.request).max_tokens,
        temperature => (q.request).temperature, top_k => (q.request).top_k, top_p => (q.request).top_p, min_p => (q.request).min_p,
        repetition_penalty => (q.request).repetition_penalty, presence_penalty => (q.request).presence_penalty,
        frequency_penalty => (q.request).frequency_penalty, logit_bias => (q.request).logit_bias, seed => (q.request).seed,
        stop => (q.request).stop, ignore_eos => (q.request).ignore_eos, logprobs => 0);
    SELECT i.base_model, i.device INTO model, device FROM openlora.inferences i WHERE i.id = answer.inference_id;
    IF model <> (q.request).base_model THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('inference %s was answered by another base model', $1), DETAIL = encode((q.request).base_model, 'hex');
    END IF;
    IF device <> (q.request).device THEN
        RAISE NOTICE USING MESSAGE = format('inference %s was computed otherwise than its replay', $1),
            DETAIL = format('%s; now %s', (q.request).device, device);
    END IF;
    same := openlora.has_digest(q.request, answer.token_logprobs);
    compared := CASE WHEN same IS NULL THEN 'text' ELSE 'tokens' END;
    same := coalesce(same, answer.text = kept);
    output := answer.text;
    replay_id := answer.inference_id;
END $$;
COMMENT ON FUNCTION lora_replay(bigint) IS
    'runs a request again, as it was recorded, and compares: by the tokens'' digest in its receipt, or else by its text';
REVOKE ALL ON FUNCTION openlora.replay_of(bigint), openlora.has_digest(openlora.inferences, jsonb) FROM PUBLIC;
