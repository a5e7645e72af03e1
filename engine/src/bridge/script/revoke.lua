-- Keeps who is let in no more, and tells all nodes. KEYS[1] says of each what there is to it (a hash), KEYS[2] until when (a
-- sorted set).
-- ARGV: whom, up to when of what was vouched for and until when it is kept, both u64 and packed, where to publish, what.
local whom, what = ARGV[1], ARGV[2]

-- Each by itself, the later one counts. Packed, since the largest number there is means for ever.
local function later(a, b)
  local high_a, low_a = struct.unpack('>I4I4', a)
  local high_b, low_b = struct.unpack('>I4I4', b)
  if high_a > high_b or (high_a == high_b and low_a > low_b) then
    return a
  end
  return b
end

local known = redis.call('HGET', KEYS[1], whom)
if known then
  what = later(string.sub(known, 1, 8), string.sub(what, 1, 8)) .. later(string.sub(known, 9), string.sub(what, 9))
end
redis.call('HSET', KEYS[1], whom, what)
redis.call('ZADD', KEYS[2], struct.unpack('>I8', string.sub(what, 9)), whom)

-- What is over need not be known any more: more of it goes than comes.
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. redis.call('TIME')[1], 'LIMIT', 0, 8)
for _, own in ipairs(over) do
  redis.call('HDEL', KEYS[1], own)
  redis.call('ZREM', KEYS[2], own)
end
return redis.call('PUBLISH', ARGV[3], ARGV[4])
