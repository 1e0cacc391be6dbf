-- ---------------------------------------------------------------- claims for a contract
-- Cumulative claims as OpenZeppelin's standard merkle tree, in the leaf layout of Morpho's
-- Universal Rewards Distributor: leaf = keccak256(keccak256(abi.encode(account, reward,
-- claimable))). This is a tree of its own; receipts have another.
CREATE FUNCTION openlora.keccak256(data bytea) RETURNS bytea
AS 'MODULE_PATHNAME', 'lora_keccak256' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

CREATE FUNCTION openlora.merkle_tree(leaves bytea[]) RETURNS bytea[]
AS 'MODULE_PATHNAME', 'lora_merkle_tree' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION openlora.merkle_tree(bytea[]) IS
    'the nodes of OpenZeppelin''s merkle tree, the root first; the leaves are hashed and sorted already';

CREATE FUNCTION openlora.claim_leaf(account bytea, reward bytea, claimable bigint) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT openlora.keccak256(openlora.keccak256(decode(lpad(encode($1, 'hex'), 64, '0') || lpad(encode($2, 'hex'), 64, '0')
    || lpad(to_hex($3), 64, '0'), 'hex')))
$$;

-- From leaf to root; what verifies it hashes each pair with the smaller first.
CREATE FUNCTION openlora.merkle_proof(tree bytea[], tree_index int) RETURNS bytea[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
WITH RECURSIVE path (depth, node) AS (
    SELECT 0, $2
    UNION ALL
    SELECT p.depth + 1, (p.node - 1) / 2 FROM path p WHERE p.node > 0
)
SELECT coalesce(array_agg($1[CASE p.node % 2 WHEN 1 THEN p.node + 1 ELSE p.node - 1 END + 1] ORDER BY p.depth), '{}')
FROM path p WHERE p.node > 0
$$;

CREATE FUNCTION openlora.merkle_verify(root bytea, leaf bytea, proof bytea[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    node    bytea := leaf;
    sibling bytea;
BEGIN
    FOREACH sibling IN ARRAY proof LOOP
        node := openlora.keccak256(least(node, sibling) || greatest(node, sibling));
    END LOOP;
    RETURN node = root;
END $$;

-- Everything that addresses could claim when a settlement was closed, paid out or not.
-- tree_index counts from 0, as the library does.
CREATE FUNCTION openlora.claim_leaves(settlement bigint, OUT account bytea, OUT reward bytea, OUT claimable bigint, OUT leaf bytea,
    OUT tree_index int)
RETURNS SETOF record LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT l.account, l.reward, l.claimable, l.leaf, (2 * count(*) OVER () - 1 - row_number() OVER (ORDER BY l.leaf))::int
FROM (SELECT c.account, c.reward, c.claimable, openlora.claim_leaf(c.account, c.reward, c.claimable) AS leaf
      FROM (SELECT q.account, q.reward, sum(q.amount)::bigint AS claimable FROM openlora.claims q
            WHERE q.settlement <= $1 GROUP BY 1, 2) c) l
$$;

CREATE FUNCTION lora_claims(settlement bigint, OUT account bytea, OUT reward bytea, OUT claimable bigint, OUT leaf bytea,
    OUT root bytea, OUT proof bytea[])
RETURNS SETOF record LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
WITH leaves AS MATERIALIZED (SELECT * FROM openlora.claim_leaves($1)),
tree AS MATERIALIZED (SELECT openlora.merkle_tree(array_agg(l.leaf ORDER BY l.leaf)) AS nodes FROM leaves l HAVING count(*) > 0)
SELECT l.account, l.reward, l.claimable, l.leaf, t.nodes[1], openlora.merkle_proof(t.nodes, l.tree_index)
FROM leaves l, tree t ORDER BY l.account, l.reward
$$;
COMMENT ON FUNCTION lora_claims(bigint) IS
    'cumulative claims of addresses up to a settlement, with the root to publish and a proof for each';

CREATE FUNCTION lora_claims_json(settlement bigint) RETURNS jsonb
LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
WITH leaves AS MATERIALIZED (SELECT * FROM openlora.claim_leaves($1)),
tree AS (SELECT openlora.merkle_tree(array_agg(l.leaf ORDER BY l.leaf)) AS nodes FROM leaves l HAVING count(*) > 0)
SELECT jsonb_build_object('format', 'standard-v1', 'leafEncoding', '["address", "address", "uint256"]'::jsonb,
    'tree', (SELECT jsonb_agg('0x' || encode(n.node, 'hex') ORDER BY n.place)
             FROM tree t, unnest(t.nodes) WITH ORDINALITY AS n (node, place)),
    'values', (SELECT jsonb_agg(jsonb_build_object('value', jsonb_build_array('0x' || encode(l.account, 'hex'),
                   '0x' || encode(l.reward, 'hex'), l.claimable::text), 'treeIndex', l.tree_index) ORDER BY l.account, l.reward)
               FROM leaves l))
WHERE EXISTS (SELECT FROM leaves)
$$;
COMMENT ON FUNCTION lora_claims_json(bigint) IS 'the claims as a dump that OpenZeppelin''s StandardMerkleTree.load reads';

REVOKE ALL ON FUNCTION openlora.keccak256(bytea), openlora.merkle_tree(bytea[]), openlora.claim_leaf(bytea, bytea, bigint),
    openlora.merkle_proof(bytea[], int), openlora.merkle_verify(bytea, bytea, bytea[]), openlora.claim_leaves(bigint) FROM PUBLIC;
