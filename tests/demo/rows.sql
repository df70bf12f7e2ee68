-- Random orders, and a view that sums them up in one line: their number, and a checksum over every byte of every row.
CREATE TABLE orders (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  customer text NOT NULL,
  cents    integer NOT NULL,
  placed   timestamptz NOT NULL
);
INSERT INTO orders (customer, cents, placed)
  SELECT md5(random()::text), 1 + floor(random() * 100000), now() - random() * interval '1 year'
  FROM generate_series(1, 10000 + floor(random() * 10000)::integer);
CREATE VIEW orders_checksum AS
  SELECT count(*) AS rows, md5(string_agg(orders::text, E'\n' ORDER BY id)) AS checksum FROM orders;
