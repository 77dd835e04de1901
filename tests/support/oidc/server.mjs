// A real OpenID provider (npm oidc-provider) for the tests of tokens.
//
//   node server.mjs MODULES    MODULES: the directory that has node_modules
//
// It prints its issuer's address when it listens. Tokens come from POST /token with client_credentials, as a
// service would ask for them. POST /test/rotate puts a new key before the others; POST /test/retire leaves the
// newest one alone. It ends with its standard input.

import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { generateKeyPairSync, randomUUID, webcrypto } from 'node:crypto';
import { pathToFileURL } from 'node:url';

// What Node 18 of Debian 12 lacks.
globalThis.crypto ??= webcrypto;
URL.parse ??= (text, base) => (URL.canParse(text, base) ? new URL(text, base) : null);

const required = createRequire(pathToFileURL(`${process.argv[2]}/`));
const { default: Provider } = await import(pathToFileURL(required.resolve('oidc-provider')));

const AUDIENCE = 'llmserve';

function newKey(kind) {
  const pair = kind === 'RSA' ? generateKeyPairSync('rsa', { modulusLength: 2048 }) : generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...pair.privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: kind === 'RSA' ? 'RS256' : 'ES256' };
}

function provider(issuer, keys) {
  return new Provider(issuer, {
    jwks: { keys },
    clients: [{
      client_id: 'red-app', client_secret: 'red-app-secret', grant_types: ['client_credentials'],
      redirect_uris: [], response_types: [], id_token_signed_response_alg: keys[0].alg,
    }],
    scopes: ['llm.use', 'llm.admin'],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, resource) => ({
          scope: 'llm.use llm.admin',
          audience: resource.endsWith('/other') ? 'other' : AUDIENCE,
          accessTokenFormat: 'jwt',
          accessTokenTTL: 600,
          jwt: { sign: { alg: keys[0].alg } },
        }),
      },
    },
    extraTokenClaims: () => ({ org: 'red', realm: { groups: ['testers'] } }),
  });
}

const server = createServer((request, response) => handle(request, response));
let keys = [newKey('RSA')];
let handle;

function serve(issuer) {
  const callback = provider(issuer, keys).callback();
  handle = (request, response) => {
    if (request.url === '/test/rotate') keys = [newKey(keys[0].kty === 'RSA' ? 'EC' : 'RSA'), ...keys];
    else if (request.url === '/test/retire') keys = keys.slice(0, 1);
    else return callback(request, response);
    serve(issuer);
    return response.end('{}');
  };
}

server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  serve(issuer);
  console.log(issuer);
});
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
