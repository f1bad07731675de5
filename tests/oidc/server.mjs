// The OpenID provider of the tests. Arguments: folder with node_modules, configuration file (see provider.py).
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';

const [modules, file] = process.argv.slice(2);
const { default: Provider } = await import(`${modules}/node_modules/oidc-provider/lib/index.js`);
const settings = JSON.parse(readFileSync(file, 'utf8'));
const groupsOf = (account) => settings.accounts[account]?.groups ?? [];

const provider = new Provider(settings.issuer, {
  jwks: settings.jwks,
  clients: settings.clients,
  cookies: { keys: ['only for tests'] },
  scopes: ['openid', 'offline_access', 'profile', 'wlcg.groups'],
  claims: { openid: ['sub'], profile: ['name'], 'wlcg.groups': ['wlcg.groups'] },
  findAccount: (ctx, sub) => ({
    accountId: sub,
    claims: () => ({ sub, name: settings.accounts[sub]?.name ?? sub, 'wlcg.groups': groupsOf(sub) }),
  }),
  extraTokenClaims: (ctx, token) => ({
    'wlcg.ver': '1.0',
    client_id: token.clientId,
    ...(token.accountId ? { 'wlcg.groups': groupsOf(token.accountId) } : {}),
  }),
  features: {
    clientCredentials: { enabled: true },
    deviceFlow: { enabled: true },
    revocation: { enabled: true },
    registration: { enabled: true },
    registrationManagement: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => settings.audience,
      useGrantedResource: () => true,
      getResourceServerInfo: (ctx, resource) => ({
        audience: resource,
        scope: 'openid profile wlcg.groups offline_access compute.create',
        accessTokenFormat: 'jwt',
        accessTokenTTL: 300,
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
});
provider.on('server_error', (ctx, error) => console.error(error));
createServer({ key: readFileSync(settings.key), cert: readFileSync(settings.certificate) }, provider.callback())
  .listen(settings.port, '127.0.0.1', () => console.log('ready'));
