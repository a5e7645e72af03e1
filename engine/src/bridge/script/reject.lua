-- Sets an entry of the queue aside that is never published. KEYS: the queue, where it goes. ARGV: its id, why, how many are kept,
-- for how many ms, how many bytes of its message.
-- Says how many were forgotten for that.
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry then
  return 0
end
local fields = {'left', ARGV[1], 'reason', ARGV[2]}
for i = 1, #entry[2], 2 do
  if entry[2][i] == 'message' then
    fields[#fields + 1] = 'message'
    fields[#fields + 1] = string.sub(entry[2][i + 1], 1, tonumber(ARGV[5]))
    break
  end
end
redis.call('XADD', KEYS[2], '*', unpack(fields))
-- Behind that, which may fail.
redis.call('XDEL', KEYS[1], ARGV[1])
local time = redis.call('TIME')
local oldest = string.format('%.0f', math.max(0, time[1] * 1000 - tonumber(ARGV[4])))
local forgotten = redis.call('XTRIM', KEYS[2], 'MINID', oldest)
forgotten = forgotten + redis.call('XTRIM', KEYS[2], 'MAXLEN', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return forgotten
