-- Deletes what was published of the queue. KEYS: the queue, who takes. ARGV: who asks, for how long in ms it goes on taking (0: it
-- does not), ids.
-- Says whether it may.
for i = 3, #ARGV do
  redis.call('XDEL', KEYS[1], ARGV[i])
end
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[2])
else
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
return 1
