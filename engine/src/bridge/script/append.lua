-- Appends publications and publishes them. KEYS[3] is what this instance has appended last.
-- ARGV: number of the first, new epoch, history size, history age in ms or 0, idle time in ms, where to publish, with which
-- command, the publications.
local items = #ARGV - 7
local first, epoch_if_new = tonumber(ARGV[1]), ARGV[2]
local size, age, idle = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

-- Whoever asks twice has not heard the first answer.
local done = redis.call('GET', KEYS[3])
if done then
  local number, last, epoch = struct.unpack('>I8I8c8', done)
  if number >= first + items - 1 then
    return { epoch, last }
  end
end

local epoch, offset, lineage, new = place(epoch_if_new, '', 0)
local last = offset + items
if last >= 2 ^ 53 then
  return redis.error_reply('ERR the channel has no offsets left')
end

if size > 0 then
  for i = 1, items do
    local add = { 'XADD', KEYS[2], id(offset + i) .. '-0', id(now), ARGV[7 + i] }
    local added = redis.pcall(unpack(add))
    if i == 1 and added.err and not string.find(added.err, '^WRONGTYPE') then
      -- What is there is ahead of the channel, so it is not its history.
      redis.call('DEL', KEYS[2])
      added = redis.pcall(unpack(add))
    end
    if added.err then
      return added
    end
  end
  redis.call('XTRIM', KEYS[2], 'MAXLEN', '~', size)
  if age > 0 then
    -- As many as are appended may become too old, and some more: a few looks, and never all at once.
    local oldest = entry_at(0)
    if oldest and time_of(oldest) < now - age then
      local ahead = math.max(64, 2 * items)
      while ahead > 0 do
        local entry = entry_at(offset_of(oldest) + ahead)
        if entry and time_of(entry) < now - age then
          break
        end
        ahead = math.floor(ahead / 4)
      end
      redis.call('XTRIM', KEYS[2], 'MINID', id(offset_of(oldest) + ahead + 1))
    end
  end
  redis.call('PEXPIRE', KEYS[2], age > 0 and age or idle)
end
redis.call('HSET', KEYS[1], 'offset', id(last))
if new then
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'life', life, 'lineage', lineage)
end
redis.call('PEXPIRE', KEYS[1], math.max(idle, age))
redis.call('SET', KEYS[3], struct.pack('>I8I8', first + items - 1, last) .. epoch, 'PX', 3600000)

local message = { struct.pack('>B', 1), epoch, struct.pack('>I8', offset + 1) }
for i = 1, items do
  local item = ARGV[7 + i]
  message[#message + 1] = struct.pack('>I4', #item)
  message[#message + 1] = item
end
redis.call(ARGV[7], ARGV[6], table.concat(message))
return { epoch, last }
