-- Keeps what all nodes are to know, also those that come later, and tells it to those that are there. KEYS[1] says of each thing
-- what there is to it (a hash), KEYS[2] until when, where it is not for ever (a sorted set).
-- ARGV: what it is about, what there is to it, where to publish, what, for how many seconds it is known that a room has ended.
local about, what = ARGV[1], ARGV[2]
local now = tonumber(redis.call('TIME')[1])

-- Of two numbers, u64 and packed: the largest one there is means for ever.
local function is_later(a, b)
  local high_a, low_a = struct.unpack('>I4I4', a)
  local high_b, low_b = struct.unpack('>I4I4', b)
  return high_a > high_b or (high_a == high_b and low_a > low_b)
end

local function later(a, b)
  return is_later(a, b) and a or b
end

local known = redis.call('HGET', KEYS[1], about)
local over
if string.byte(about) == 2 then
  -- Of a room the later word counts: its time, and where that is the same what was drawn.
  if known and #known > 16 then
    local of, by = string.sub(known, 1, 8), string.sub(what, 1, 8)
    if is_later(of, by) or (of == by and not is_later(string.sub(what, 9, 16), string.sub(known, 9, 16))) then
      what = known
    end
  end
  over = string.byte(what, 17) ~= 0 and now + ARGV[5] or nil
else
  -- Of who is let in no more, up to when of what was vouched for and until when it is kept, each by itself.
  if known then
    what = later(string.sub(known, 1, 8), string.sub(what, 1, 8)) .. later(string.sub(known, 9), string.sub(what, 9))
  end
  over = struct.unpack('>I8', string.sub(what, 9))
end
redis.call('HSET', KEYS[1], about, what)
if not over then
  redis.call('ZREM', KEYS[2], about)
elseif string.byte(about) ~= 2 or what ~= known then
  redis.call('ZADD', KEYS[2], over, about)
end

-- What is over need not be known any more: more of it goes than comes.
for _, own in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. now, 'LIMIT', 0, 8)) do
  redis.call('HDEL', KEYS[1], own)
  redis.call('ZREM', KEYS[2], own)
end
return redis.call('PUBLISH', ARGV[3], ARGV[4])
