-- Some of what is left in the queue, in its order, for who takes from it: one node at a time, as long as that says so.
-- KEYS: the queue, who takes. ARGV: who asks, for how long in ms, behind which entry ('-' for none), how many, how many bytes (or
-- one), how long one may be.
-- Says how many there are, and of each of some its id, its message (none where it has none, or too long a one) and its length.
local left = redis.call('XLEN', KEYS[1])
local taker = redis.call('GET', KEYS[2])
if left == 0 or (taker and taker ~= ARGV[1]) then
  return {left, {}}
end
-- First, so that a server that takes no writes says so.
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
local from, entries, bytes = ARGV[3], {}, 0
while #entries < tonumber(ARGV[4]) and bytes < tonumber(ARGV[5]) do
  local entry = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)[1]
  if not entry then
    break
  end
  from = '(' .. entry[1]
  local message, length = false, 0
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'message' then
      message = entry[2][i + 1]
    end
  end
  if message then
    length = #message
    if length > tonumber(ARGV[6]) then
      message = false
    else
      bytes = bytes + length
    end
  end
  entries[#entries + 1] = {entry[1], message, length}
end
return {left, entries}
