-- Says where a channel stands, and what came behind a position.
-- ARGV: new epoch, epoch of the position or nothing, its offset, history age in ms or 0, idle time in ms, entries at most, bytes
-- of them at most or one.
local since_epoch, since = ARGV[2], tonumber(ARGV[3])
local age, idle = tonumber(ARGV[4]), tonumber(ARGV[5])
local entries_max, bytes_max = tonumber(ARGV[6]), tonumber(ARGV[7])

local epoch, offset, lineage, new = place(ARGV[1], since_epoch, since)
if new then
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'offset', id(offset), 'life', life, 'lineage', lineage)
end
redis.call('PEXPIRE', KEYS[1], math.max(idle, age))
if age == 0 then
  redis.call('PEXPIRE', KEYS[2], idle)
end

local from
if since_epoch == epoch then
  from = since
else
  for at = 1, #lineage, 16 do
    if from == nil and string.sub(lineage, at, at + 7) == since_epoch then
      from = math.min(since, (struct.unpack('>I8', lineage, at + 8)))
    end
  end
  -- Of a life that continues none nobody has anything who asks from another: where all of it is here, all is told.
  if from == nil and since_epoch ~= '' and lineage == '' then
    local first = entry_at(0)
    from = first and offset_of(first) == 1 and 0 or nil
  end
end

local found = {}
if from and from < offset then
  local at = from + 1
  local entry = entry_at(at)
  if entry and age > 0 and time_of(entry) < now - age then
    -- Between these is the first that is not too old.
    local old, young = offset_of(entry), offset + 1
    while young - old > 1 do
      local middle = math.floor((old + young) / 2)
      local entry = entry_at(middle)
      if entry and time_of(entry) < now - age then
        old = math.max(middle, offset_of(entry))
      else
        young = middle
      end
    end
    at = young
  end
  local bytes, previous = 0, nil
  while at <= offset and #found < 3 * entries_max do
    local entries = redis.call('XRANGE', KEYS[2], id(at), '+', 'COUNT', 32)
    for _, entry in ipairs(entries) do
      local own, item = offset_of(entry), entry[2][2]
      bytes = bytes + #item
      -- Nothing is told behind a hole, or beyond what fits: it is asked for again from there.
      if previous and (own ~= previous + 1 or bytes > bytes_max) or #found == 3 * entries_max then
        return { epoch, offset, lineage, found }
      end
      found[#found + 1] = own
      found[#found + 1] = math.max(0, now - time_of(entry))
      found[#found + 1] = item
      previous = own
    end
    if #entries < 32 then
      break
    end
    at = previous + 1
  end
end
return { epoch, offset, lineage, found }
