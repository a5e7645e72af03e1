-- Appends publications and publishes them. KEYS[3] is what this instance has appended last, those behind it are idempotency
-- keys: of the publications that have one, in order.
-- ARGV: the numbers of the publications, new epoch, history size, history age in ms or 0, idle time in ms, where to publish, with which
-- command (none: who asks does it, and is told what), for how many ms keys are remembered, for each publication a byte that says whether it has one, the publications.
local before = 9
local items = #ARGV - before
local numbers, epoch_if_new = ARGV[1], ARGV[2]
local size, age, idle = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

-- Whoever asks twice has not heard the first answer. Publications that have waited elsewhere meanwhile come with more of them.
local function number_of(i)
  return (struct.unpack('>I8', numbers, 8 * i - 7))
end
local done = redis.call('GET', KEYS[3])
local skipped = 0
if done then
  local number, last, epoch = struct.unpack('>I8I8c8', done)
  if number >= number_of(items) then
    return { epoch, last, string.sub(done, 25) }
  end
  while number_of(skipped + 1) <= number do
    skipped = skipped + 1
  end
end

local epoch, offset, lineage, new = place(epoch_if_new, '', 0)
-- What is to be appended; where it will stand, by its key; what was before, by its place.
local fresh, keyed, duplicates = {}, {}, {}
local next_key = 3
for i = 1, items do
  local key
  if string.byte(ARGV[9], i) == 1 then
    next_key = next_key + 1
    key = KEYS[next_key]
  end
  if i > skipped then
    local known = key and (keyed[key] or redis.call('GET', key))
    if known then
      duplicates[#duplicates + 1] = struct.pack('>I4', i - 1) .. known
    else
      fresh[#fresh + 1] = ARGV[before + i]
      if key then
        keyed[key] = epoch .. struct.pack('>I8', offset + #fresh)
      end
    end
  end
end
duplicates = table.concat(duplicates)
local last = offset + #fresh
if last >= 2 ^ 53 then
  return redis.error_reply('ERR the channel has no offsets left')
end

if size > 0 and #fresh > 0 then
  for i, item in ipairs(fresh) do
    local add = { 'XADD', KEYS[2], id(offset + i) .. '-0', id(now), item }
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
      local ahead = math.max(64, 2 * #fresh)
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
for key, stands in pairs(keyed) do
  redis.call('SET', key, stands, 'PX', ARGV[8])
end
local now_done = struct.pack('>I8I8', number_of(items), last) .. epoch .. duplicates
redis.call('SET', KEYS[3], now_done, 'PX', 3600000)

if #fresh > 0 then
  local message = { struct.pack('>B', 1), epoch, struct.pack('>I8', offset + 1) }
  for _, item in ipairs(fresh) do
    message[#message + 1] = struct.pack('>I4', #item)
    message[#message + 1] = item
  end
  message = table.concat(message)
  if ARGV[7] == '' then
    return { epoch, last, duplicates, message }
  end
  redis.call(ARGV[7], ARGV[6], message)
end
return { epoch, last, duplicates }
