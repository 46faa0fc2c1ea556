#!lua name=broker_@HASH@
-- The server's half of the store: each function is one atomic step.  Lua here does not roll back, so in every function
-- all checks stand before the first write, and the first write is the audit record: it is the one that could still fail.
-- A repeated call rewrites something although all is there: WAIT vouches only for what its own connection has written.
-- An element of a log is "n tag entry".  The name above and every function's carry a hash of this file, so that two
-- versions of the broker share a server.

local function tag_of(element)
  return element and string.match(element, '^%d+ (%S+) ')
end

local function append_record(audit, record)
  redis.call('XADD', audit, '*', 'r', record)
end

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function skewed(server_now, now, skew_s)
  return math.abs(server_now - tonumber(now)) > tonumber(skew_s)
end

local function whole(seconds)
  return string.format('%d', math.floor(seconds))
end

-- What a node whose tag is not the head's should know: what follows its own entry, if that is in this history at all.
local function stale(log, pos, tag, head, tail_max)
  if tag_of(redis.call('LINDEX', log, pos)) ~= tag then
    return {'STALE', head[1], head[2]}
  end
  return {'STALE', head[1], head[2], redis.call('LRANGE', log, pos + 1, pos + tail_max)}
end

-- keys: head log audit    args: tag entry record
local function birth(keys, args)
  if redis.call('EXISTS', keys[1]) == 1 then return {'CONFLICT'} end
  if redis.call('EXISTS', keys[2]) == 1 then return {'BAD'} end
  append_record(keys[3], args[3])
  redis.call('RPUSH', keys[2], '0 ' .. args[1] .. ' ' .. args[2])
  redis.call('HSET', keys[1], 'n', '0', 'tag', args[1])
  return {'OK'}
end

-- keys: head log    args: pos (empty: from the start) tag page
local function read(keys, args)
  if redis.call('EXISTS', keys[1]) == 0 then return {'UNBORN'} end
  local from = 0
  if args[1] ~= '' then
    if tag_of(redis.call('LINDEX', keys[2], args[1])) ~= args[2] then return {'FORK'} end
    from = args[1] + 1
  end
  local entries = redis.call('LRANGE', keys[2], from, from + args[3] - 1)
  return {'EXTENSION', redis.call('LLEN', keys[2]) - from - #entries, entries}
end

-- keys: head log ids audit    args: previous tag, n, tag, entry, id, digest, record
local function add(keys, args)
  local head = redis.call('HMGET', keys[1], 'n', 'tag')
  if not head[2] then return {'UNBORN'} end
  -- Before the tag: a retry after a lost reply must not depend on winning a race.
  local known = redis.call('HGET', keys[3], args[5])
  if known then
    local n, digest = string.match(known, '^(%d+) (%S+)$')
    redis.call('HSET', keys[1], 'n', head[1], 'tag', head[2])
    if digest ~= args[6] then return {'BAD'} end
    return {'DUP', n}
  end
  if head[2] ~= args[1] then return {'CONFLICT', head[1], head[2]} end
  if tonumber(args[2]) <= tonumber(head[1]) then return {'BAD'} end
  redis.call('LLEN', keys[2])
  append_record(keys[4], args[7])
  redis.call('RPUSH', keys[2], args[2] .. ' ' .. args[3] .. ' ' .. args[4])
  redis.call('HSET', keys[1], 'n', args[2], 'tag', args[3])
  redis.call('HSET', keys[3], args[5], args[2] .. ' ' .. args[6])
  return {'OK'}
end

-- keys: head log audit cred tomb [claim] parents…
-- args: pos tag now id record registration cred_until skew_s tail_max claim_until (empty: no claim)
local function commit(keys, args)
  local head = redis.call('HMGET', keys[1], 'n', 'tag')
  if not head[2] then return {'UNBORN'} end
  if head[2] ~= args[2] then return stale(keys[2], args[1], args[2], head, args[9]) end
  local server_now = clock()
  if skewed(server_now, args[3], args[8]) then return {'SKEW', string.format('%.3f', server_now)} end
  local claim = args[10] ~= '' and keys[6]
  for i = claim and 7 or 6, #keys do
    if redis.call('HGET', keys[i], 'state') ~= 'live' then return {'REVOKED'} end
  end
  if redis.call('EXISTS', keys[5]) == 1 then return {'VOID'} end
  local id = args[4]
  local known = redis.call('HMGET', keys[4], 'id', 'state')
  if known[1] then
    if known[1] ~= id then return {'BAD'} end
    if known[2] ~= 'live' then return {'REVOKED'} end
    redis.call('HSET', keys[4], 'id', id, 'state', 'live')
    return {'OK'}
  end
  if claim then
    local holder = redis.call('GET', claim)
    if holder and holder ~= id then return {'REPLAY'} end
    -- A claim that is over already would let the token through again.
    if tonumber(args[10]) <= server_now then return {'BAD'} end
  end
  if tonumber(args[7]) <= tonumber(args[3]) then return {'BAD'} end
  append_record(keys[3], args[5])
  if claim then redis.call('SET', claim, id, 'EXAT', args[10]) end
  redis.call('HSET', keys[4], 'id', id, 'state', 'live', 'facts', args[6])
  redis.call('EXPIREAT', keys[4], whole(args[7] + args[8]))
  return {'OK'}
end

-- keys: audit cred tomb [claim]    args: id tomb_until record skew_s
local function void(keys, args)
  local tomb = redis.call('GET', keys[3])
  if tomb then
    redis.call('SET', keys[3], tomb, 'KEEPTTL')
    return {'DUP'}
  end
  local known = redis.call('HMGET', keys[2], 'id', 'state')
  if known[1] and known[1] ~= args[1] then return {'BAD'} end
  local ours = keys[4] and redis.call('GET', keys[4]) == args[1]
  append_record(keys[1], args[3])
  if ours then redis.call('DEL', keys[4]) end
  if known[2] == 'live' then redis.call('HSET', keys[2], 'state', 'void') end
  -- Never so short that the commit under way, which may come later than this, finds it gone.
  redis.call('SET', keys[3], args[1], 'EXAT', whole(math.max(tonumber(args[2]), clock() + 2 * args[4])))
  return {'OK'}
end

-- keys: audit cred    args: record
local function mark(keys, args)
  local state = redis.call('HGET', keys[2], 'state')
  if not state then return {'ABSENT'} end
  if state == 'revoked' then
    redis.call('HSET', keys[2], 'state', 'revoked')
    return {'DUP'}
  end
  append_record(keys[1], args[1])
  redis.call('HSET', keys[2], 'state', 'revoked')
  return {'OK'}
end

-- keys: audit [head log [claim]]    args: record [pos tag now skew_s tail_max]
local function append(keys, args)
  if keys[2] then
    local head = redis.call('HMGET', keys[2], 'n', 'tag')
    if not head[2] then return {'UNBORN'} end
    if head[2] ~= args[3] then return stale(keys[3], args[2], args[3], head, args[6]) end
    local server_now = clock()
    if skewed(server_now, args[4], args[5]) then return {'SKEW', string.format('%.3f', server_now)} end
    if keys[4] and redis.call('EXISTS', keys[4]) == 1 then return {'REPLAY'} end
  end
  append_record(keys[1], args[1])
  return {'OK'}
end

-- keys: audit keys    args: expected version (0: none yet) ring record
local function keys_swap(keys, args)
  local version = redis.call('HGET', keys[2], 'version') or '0'
  if tonumber(version) ~= tonumber(args[1]) then return {'CONFLICT', version} end
  append_record(keys[1], args[3])
  redis.call('HSET', keys[2], 'version', whole(version + 1), 'ring', args[2])
  return {'OK'}
end

-- Memory that is full must not protect an attacker: what cuts off may always be written.
redis.register_function('broker_@HASH@_birth', birth)
redis.register_function{function_name = 'broker_@HASH@_read', callback = read, flags = {'no-writes'}}
redis.register_function{function_name = 'broker_@HASH@_add', callback = add, flags = {'allow-oom'}}
redis.register_function('broker_@HASH@_commit', commit)
redis.register_function{function_name = 'broker_@HASH@_void', callback = void, flags = {'allow-oom'}}
redis.register_function{function_name = 'broker_@HASH@_mark', callback = mark, flags = {'allow-oom'}}
redis.register_function('broker_@HASH@_append', append)
redis.register_function('broker_@HASH@_keys_swap', keys_swap)
